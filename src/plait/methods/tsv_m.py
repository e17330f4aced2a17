"""Keep each model's leading singular directions, make those of all models orthogonal to each other, add them up (TSV-Merge).

1. delta_i = w_i (x_i - base); of each matrix the k = floor(rank / models) largest singular triplets, at least one.
2. U = [U_1 ... U_n], and the nearest matrix with orthonormal columns: its polar factor P(U). V likewise; S holds all values.
3. result = base + lambda * P(U) diag(S) P(V)^T.

Models that change the same directions then no longer disturb each other. For full fine-tunes of several tasks; lambda is 1 in
the paper. Vectors, embeddings, heads and routers get lambda * the mean of the delta_i. Costs one eigendecomposition a model and
two more for each matrix: about 15 s for three models and 2048 x 2048 on one core, growing with the cube of the smaller side.
Equal models give their own low-rank part, once.

Reference: Gargiulo et al., Task Singular Vectors, https://arxiv.org/abs/2412.00081
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.pieces import Piece
from plait.ops.spectral import polar, svd


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    lambda_: float = param("Scale of the whole change.", default=1.0)


@method(Params, space="delta", base="required", unit="matrix", breaks=("equal models give that model",))
def tsv_m(piece: Piece, p: Params) -> Tensor:
    n = len(piece.models)

    def merge(matrix: Piece) -> Tensor:
        rank = max(1, min(matrix.models[0].shape) // n)
        triplets = [svd(x * w, rank) for x, w in zip(matrix.models, p.weight, strict=True)]
        u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triplets, strict=True))
        return (polar(u) * s) @ polar(v).mT

    return by_matrix(piece, merge, [w / n for w in p.weight]).mul_(p.lambda_)
