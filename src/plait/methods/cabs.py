"""Give every model entries of its own: its largest changes in each small block, where no earlier model took them (CABS).

1. delta_i = x_i - base. The models take turns in the order of the recipe.
2. In every `block` entries of a row (m; a vector is one row) a model takes its `keep` (n) largest changes among the entries that
   no model before it took; a shorter block at the end of a row gives its share, rounded up. Zeros are not taken.
3. result = base + lambda * sum_i w_i delta_i over the entries taken, which never overlap.

Put the model that matters most first. Blocks keep what is left evenly spread, which trimming a whole tensor does not; for models
that would disturb each other, with weights near 1 or somewhat above. The sum of all keep / block should not exceed 1, or the
last models get what is left. Every tensor is treated alike. Sorts each block, which takes some 15 times as long as task
arithmetic.

Reference: Yang et al., CABS: Conflict-Aware and Balanced Sparsification, https://arxiv.org/abs/2503.01874
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import PerModel, method, param
from plait.ops.balanced import largest_of_blocks
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    keep: PerModel[int] = param("Entries that a model takes of each block, at most `block`.", default=8, low=1)
    block: PerModel[int] = param("Entries of a block.", default=32, low=1)
    lambda_: float = param("Scale of the whole sum.", default=1.0)

    def __post_init__(self) -> None:
        if any(keep > block for keep, block in zip(self.keep, self.block, strict=True)):
            raise ValueError("keep is larger than block, of which it is a part", "lower keep, or raise block")


@method(Params, space="delta", base="required", inputs=(0, None), unit="row", breaks=("equal models give that model",))
def cabs(piece: Piece, p: Params) -> Tensor:
    merged = torch.zeros_like(piece.models[0])
    free = torch.ones_like(merged)
    for x, w, keep, block in zip(piece.models, p.weight, p.keep, p.block, strict=True):
        taken = largest_of_blocks(x.abs().mul_(free), keep, block)
        merged += x * taken * w
        free -= taken
    return merged.mul_(p.lambda_)
