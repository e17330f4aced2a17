"""Shrink directions of the merged change that several models share, and that a sum counts several times (SVC).

1. Of each matrix of the merged difference the singular triplets (u, s, v).
2. For each model: s_i = <u^T merged, u^T delta_i> / |u^T delta_i|^2, how much more the merge has along u than model i by itself.
3. The singular value is multiplied by models / sum_i max(alpha, s_i).

The commonest fault of simple methods (linear sums, task_arithmetic, ties, dare) is this over-counting; the paper measures its
largest gains there. Vectors, embeddings, heads and routers stay as they are. Costs one decomposition for each matrix.

Reference: When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging, https://arxiv.org/abs/2602.05536
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
    alpha: float = param("Bounds the growth of a singular value by 1 / alpha; above 0.", default=0.1, low=1e-6)


@brick(Params, at="post", unit="matrix")
def svc(piece: Piece, p: Params) -> Tensor:
    assert piece.merged is not None
    tensors = [piece.merged, *piece.models]
    return each_matrix(piece, tensors, lambda merged, *deltas: calibrate.svc(merged, deltas, p.alpha))
