"""Like iso_c, but the weakest directions of the sum make room for directions of single models (Iso-CTS).

1. delta_i = w_i (x_i - base), and their sum, of each matrix with r = min(rows, columns) singular values.
2. The common space: the leading r - models * t triplets of the sum (none if that is negative), with
   t = round((r - floor(common * r)) / models).
3. Of each model the leading t triplets of delta_i - U_c U_c^T delta_i, what the common space does not hold.
4. U and V of all these, each replaced by its polar factor P (orthonormal columns); m is the mean of all their singular values.
5. result = base + lambda * m * P(U) P(V)^T.

For many dissimilar tasks, where iso_c loses what only one model knows; `common` is 0.8 in the paper, and lambda, of 1 to 2, is
chosen on held-out data. Vectors, embeddings, heads and routers get lambda * the mean of the delta_i. Costs models + 3
decompositions for each matrix: about 20 s for three models and 2048 x 2048 on one core, growing with the cube of the smaller
side.

Reference: Marczak et al., No Task Left Behind, https://arxiv.org/abs/2502.04959
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece
from plait.ops.spectral import ZERO, polar, svd


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    common: float = param("Share of the directions that are the sum's, in [0, 1].", default=0.8, low=0, high=1)
    lambda_: float = param("Scale of the whole change.", default=1.0)


@method(Params, space="delta", base="required", unit="matrix", breaks=("equal models give that model",))
def iso_cts(piece: Piece, p: Params) -> Tensor:
    n = len(piece.models)

    def merge(matrix: Piece) -> Tensor:
        rank = min(matrix.models[0].shape)
        own = round((rank - math.floor(p.common * rank + 1e-9)) / n)
        shared = svd(weighted_sum(matrix.models, p.weight), max(0, rank - own * n))
        triplets = [shared]
        for x, w in zip(matrix.models, p.weight, strict=True):
            delta = x * w
            rest = delta - shared[0] @ (shared[0].mT @ delta)
            triplets.append(svd(rest, own, floor=ZERO * float(torch.linalg.matrix_norm(delta))))
        u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triplets, strict=True))
        return polar(u) @ polar(v).mT * (s.sum() / max(1, len(s)))

    return by_matrix(piece, merge, [w / n for w in p.weight]).mul_(p.lambda_)
