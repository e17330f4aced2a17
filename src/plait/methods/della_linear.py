"""Drop entries of the differences at random, the small ones more often; enlarge the rest and add it to the base.

1. delta_i = x_i - base. An entry is kept with probability density - epsilon + 2 * epsilon * r, where r is the rank of its
   magnitude in its row along the last axis, from 0 (smallest) to 1. A vector is one row, equal magnitudes are ranked by place,
   a row of one entry has r = 1/2. A density of 1 keeps everything.
2. With `rescale` what is left is enlarged: to the old L1 norm of the tensor, as mergekit does (`rescale_by: l1`, the default), or
   each entry by 1 / its own probability, which keeps the expectation, as the paper does (`rescale_by: density`).
3. result = base + lambda * sum_i w_i delta_i, divided by the sum of the weights if `normalize`, unless that is 0
   (below 1e-8).

Which entries are dropped depends on the seed, the tensor's name and the model's place in the recipe only.

Reference: Deep et al., DELLA-Merging, https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights, weighted_sum
from plait.ops.drop import drop_by_rank
from plait.ops.pieces import Piece, Pieces
from plait.ops.rescale import l1_factors


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model's difference counts.")
    density: PerModel[float] = param("Mean probability that an entry is kept, in [0, 1].", default=1.0, low=0, high=1)
    epsilon: PerModel[float] = param(
        "How far the probability goes below and above the density, in [0, 1].", default=0.15, low=0, high=1
    )
    normalize: bool = param("Divide by the sum of the weights.", default=False)
    rescale: bool = param("Enlarge what is left of a delta.", default=True)
    rescale_by: str = param(
        "By what: the loss of L1 norm, or the probability.", default="l1", choices=("l1", "density")
    )
    lambda_: float = param("Scale of the whole sum.", default=1.0)

    def __post_init__(self) -> None:
        for d, e in zip(self.density, self.epsilon, strict=True):
            if 0 < d < 1 and not (d - e > 0 and d + e < 1):
                room = min(d, 1 - d)
                raise ValueError(
                    f"density {d:g} and epsilon {e:g} make probabilities from {d - e:g} to {d + e:g}, "
                    "which must lie between 0 and 1",
                    f"set epsilon below {room:g}, or density to 1",
                )


def first(pieces: Pieces, p: Params) -> list[float]:
    """The factor by which what is left of each delta is enlarged, over the whole tensor."""
    if p.rescale and p.rescale_by == "l1":
        return l1_factors(pieces, lambda piece: dropped(piece, p))
    return [1.0] * len(p.density)


def dropped(piece: Piece, p: Params) -> list[Tensor]:
    """The models after step 1, and after 1 / probability where that is asked for."""
    return drop_by_rank(piece, p.density, p.epsilon, divide=p.rescale and p.rescale_by == "density")


def stored(p: Params) -> bool:
    """Whether the kernels can do it: they know no division by each entry's own probability."""
    return not (p.rescale and p.rescale_by == "density")


@method(
    Params,
    space="delta",
    base="required",
    inputs=(0, None),
    unit="row",
    first=first,
    raw=stored,
    idle=("int8_mask",),
)
def della_linear(piece: Piece, p: Params) -> Tensor:
    weights = delta_weights(p.weight, p.normalize, p.lambda_)
    return weighted_sum(dropped(piece, p), [w * f for w, f in zip(weights, piece.whole, strict=True)])
