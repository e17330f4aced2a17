"""Raise the small singular values of the merged change, so that no few directions rule it (Subspace Boosting).

1. Of each matrix of the merged difference: the singular value with which the running sum reaches `beta` of all.
2. All later ones are raised to it. At beta 0 all become the largest; at 1 nothing changes.

For merges of many models, whose sum collapses onto what they share. The change becomes larger: put `scale` or `norm_guard` after
it. Vectors, embeddings, heads and routers stay as they are. Costs one decomposition for each matrix.

Reference: Skorobogat et al., Subspace-Boosted Model Merging, https://arxiv.org/abs/2506.16506
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
    beta: float = param("Where in the running sum the floor is taken, in [0, 1].", default=0.01, low=0, high=1)


@brick(Params, at="post", unit="matrix")
def subspace_boost(piece: Piece, p: Params) -> Tensor:
    assert piece.merged is not None
    return each_matrix(piece, [piece.merged], lambda merged: calibrate.subspace_boost(merged, p.beta))
