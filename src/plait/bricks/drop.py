"""Drop entries of each model's change by chance, and enlarge the rest (DARE).

Of each model's difference to the base every entry is kept with probability `density`. With `rescale` what is left is divided by
the density, as in the paper, or brought to its old L1 norm (`rescale_by: l1`), as mergekit's dare methods do. The random numbers
depend on the seed, the tensor, the model and the entry only.

Reference: Yu et al., Language Models are Super Mario, https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor
from plait.method import PerModel, param
from plait.ops import drop as dropping
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    density: PerModel[float] = param("Probability that an entry is kept, in [0, 1].", default=0.5, low=0, high=1)
    rescale: bool = param("Enlarge what is left of a change.", default=True)
    rescale_by: str = param(
        "By what: the density, or the loss of L1 norm.", default="density", choices=("density", "l1")
    )


def _first(pieces: Pieces, p: Params) -> list[float]:
    return dropping.drop_factors(pieces, p.density, p.rescale, p.rescale_by)


@brick(Params, at="pre", first=_first)
def drop(piece: Piece, p: Params) -> list[Tensor]:
    return [x * factor for x, factor in zip(dropping.drop(piece, p.density), piece.whole, strict=True)]
