"""Drop entries of the differences at random, the small ones more often; enlarge the rest, then elect signs as TIES does.

1. delta_i = x_i - base. An entry is kept with probability density - epsilon + 2 * epsilon * r, where r is the rank of its
   magnitude in its row along the last axis, from 0 (smallest) to 1. A vector is one row, equal magnitudes are ranked by place,
   a row of one entry has r = 1/2. A density of 1 keeps everything.
2. With `rescale` what is left is enlarged: to the old L1 norm of the tensor, as mergekit does (`rescale_by: l1`, the default), or
   each entry by 1 / its own probability, which keeps the expectation, as the paper does (`rescale_by: density`).
3. The sign of an entry is that of sum_i w_i delta_i; deltas of the other sign drop out of that entry.
4. result = base + lambda * the weighted sum of the rest, divided by the weights that took part if `normalize`, unless
   they sum to 0.

Which entries are dropped depends on the seed, the tensor's name and the model's place in the recipe only.

Reference: Deep et al., DELLA-Merging, https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import method, param
from plait.methods import della_linear
from plait.ops.combine import elected_sum
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params(della_linear.Params):
    normalize: bool = param("Divide by the weights that took part in an entry.", default=True)


@method(
    Params,
    space="delta",
    base="required",
    inputs=(0, None),
    unit="row",
    first=della_linear.first,
    raw=della_linear.stored,
    idle=("int8_mask",),
)
def della(piece: Piece, p: Params) -> Tensor:
    enlarged = [x if f == 1 else x * f for x, f in zip(della_linear.dropped(piece, p), piece.whole, strict=True)]
    return elected_sum(enlarged, p.weight, p.normalize, p.lambda_)
