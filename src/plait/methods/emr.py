"""Take in each entry the majority's sign and the largest change that has it (the unified model of EMR-Merging).

1. delta_i = x_i - base. The sign of an entry is that of sum_i delta_i; 0 counts as +.
2. The size of an entry is the largest |delta_i| among the models that have this sign, 0 if none has.
3. result = base + lambda * sign * size.

The paper gives each task a mask and a scale of its own on top, which one checkpoint cannot hold; without them the change is
larger than any model's, so it suits few models whose changes hardly overlap, and lambda below 1 otherwise. Every tensor is
treated alike. One pass.

Reference: Huang et al., EMR-Merging, https://arxiv.org/abs/2405.17461
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import method, param
from plait.ops.combine import agreeing
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    lambda_: float = param("Scale of the whole change; 1 in the paper, which tunes nothing.", default=1.0)


@method(Params, space="delta", base="required", inputs=(0, None))
def emr(piece: Piece, p: Params) -> Tensor:
    sign, agreed = agreeing(piece.models)
    size = torch.zeros_like(sign)
    for magnitude in agreed:
        torch.maximum(size, magnitude, out=size)  # NaN wins
    return size.mul_(sign).mul_(p.lambda_)
