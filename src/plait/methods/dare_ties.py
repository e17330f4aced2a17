"""Drop entries of the deltas at random, enlarge the rest, elect a sign for each entry, add those that agree.

1. delta_i = x_i - base, of which each entry is kept with probability `density`.
2. With `rescale` what is left is enlarged: to the old L1 norm of the tensor, as mergekit does (`rescale_by: l1`, the default), or
   by 1 / density, which keeps the expectation, as the paper does (`rescale_by: density`).
3. The sign of an entry is that of sum_i w_i delta_i; deltas of the other sign drop out of that entry.
4. result = base + lambda * the weighted sum of the rest, divided by the weights that took part if `normalize`, unless
   they sum to 0.

Which entries are dropped depends on the seed, the tensor's name and the model's place in the recipe only.

Reference: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from plait.lazy import Tensor
from plait.method import method
from plait.methods.dare_linear import Params
from plait.ops.combine import elected_sum
from plait.ops.drop import drop, drop_factors
from plait.ops.pieces import Piece, Pieces


def _first(pieces: Pieces, p: Params) -> list[float]:
    return drop_factors(pieces, p.density, p.rescale, p.rescale_by)


@method(Params, space="delta", base="required", inputs=(0, None), first=_first, raw=True, idle=("int8_mask",))
def dare_ties(piece: Piece, p: Params) -> Tensor:
    enlarged = [x * f for x, f in zip(drop(piece, p.density), piece.whole, strict=True)]
    return elected_sum(enlarged, p.weight, p.normalize, p.lambda_)
