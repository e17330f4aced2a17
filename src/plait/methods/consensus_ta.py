"""Add the models' differences up, but only in entries that matter to several of them (Consensus Task Arithmetic).

1. delta_i = w_i (x_i - base); their sum is d.
2. An entry matters to model i where |delta_i| >= threshold * |d - delta_i|: its own part is large next to that of the others
   (the TALL mask).
3. result = base + lambda * d in entries that matter to at least `agreement` models (to all, if there are fewer); the base
   elsewhere, where a change is of use to one model alone or to none.

For many tasks whose sum has grown too noisy; with it, lambda is that of task arithmetic, near 1 / models to 0.5. The paper tries
thresholds from 0.2 to 0.6 for each task on held-out data. Every tensor is treated alike. One pass, like task arithmetic.

Reference: Wang et al., Localizing Task Information for Improved Model Merging and Compression, https://arxiv.org/abs/2405.07813
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import PerModel, method, param
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    threshold: float = param(
        "How large a difference must be, in units of the sum of the others', for its entry to matter.",
        default=0.6,
        low=0,
    )
    agreement: int = param("Models to which an entry must matter.", default=2, low=0)
    lambda_: float = param("Scale of the whole sum.", default=1.0)


@method(Params, space="delta", base="required", inputs=(0, None), breaks=("equal models give that model",))
def consensus_ta(piece: Piece, p: Params) -> Tensor:
    merged = weighted_sum(piece.models, p.weight)
    votes = torch.zeros_like(merged)
    for x, w in zip(piece.models, p.weight, strict=True):
        delta = x * w
        others = (merged - delta).abs_().mul_(p.threshold)
        votes += torch.ge(delta.abs_(), others, out=others)
    return merged.mul_(votes.ge_(min(p.agreement, len(piece.models)))).mul_(p.lambda_)
