"""Drop entries of the deltas at random, enlarge the rest, and add them to the base.

1. delta_i = x_i - base, of which each entry is kept with probability `density`.
2. With `rescale` what is left is enlarged: to the old L1 norm of the tensor, as mergekit does (`rescale_by: l1`, the default), or
   by 1 / density, which keeps the expectation, as the paper does (`rescale_by: density`).
3. result = base + lambda * sum_i w_i delta_i, divided by the sum of the weights if `normalize`, unless that is 0
   (below 1e-8).

Which entries are dropped depends on the seed, the tensor's name and the model's place in the recipe only.

Reference: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights, weighted_sum
from plait.ops.drop import drop, drop_factors
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model's difference counts.")
    density: PerModel[float] = param("Probability that an entry is kept, in [0, 1].", default=1.0, low=0, high=1)
    normalize: bool = param("Divide by the sum of the weights.", default=False)
    rescale: bool = param("Enlarge what is left of a delta.", default=True)
    rescale_by: str = param("By what: the loss of L1 norm, or the density.", default="l1", choices=("l1", "density"))
    lambda_: float = param("Scale of the whole sum.", default=1.0)


def _first(pieces: Pieces, p: Params) -> list[float]:
    factors = drop_factors(pieces, p.density, p.rescale, p.rescale_by)
    return [w * f for w, f in zip(delta_weights(p.weight, p.normalize, p.lambda_), factors, strict=True)]


@method(Params, space="delta", base="required", inputs=(0, None), first=_first, raw=True, idle=("int8_mask",))
def dare_linear(piece: Piece, p: Params) -> Tensor:
    return weighted_sum(drop(piece, p.density), piece.whole)
