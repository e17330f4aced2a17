"""Keep the leading singular directions of each model's change, enlarged to their old sum (STAR).

1. Of each matrix of a model's difference to the base: the fewest leading singular values that sum to `eta` of all, at least one.
2. These are multiplied by the sum of all over the sum of the kept ones.

For merges of many models, whose changes then overlap less. Vectors, embeddings, heads and routers stay as they are. Costs one
decomposition a model for each matrix.

Reference: Lee et al., STAR: Spectral Truncation and Rescale, https://arxiv.org/abs/2502.10339
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor
from plait.matrices import each_matrix
from plait.method import param
from plait.ops import calibrate
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    eta: float = param("Share of the sum of singular values that is kept, in [0, 1].", default=0.4, low=0, high=1)


@brick(Params, at="pre", unit="matrix")
def star(piece: Piece, p: Params) -> list[Tensor]:
    return [each_matrix(piece, [x], lambda delta: calibrate.star(delta, p.eta)) for x in piece.models]
