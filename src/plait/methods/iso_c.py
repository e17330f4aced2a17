"""Add the models' differences and make the sum equally strong in all its directions (Iso-C).

1. delta = sum_i w_i (x_i - base) = U diag(s) V^T, of each matrix.
2. result = base + lambda * mean(s) * U V^T.

The sum of the singular values stays, but no direction that many models share outweighs the rest. For full fine-tunes of many
tasks; a lambda of 1 to 2 is usual, chosen on held-out data. Singular values up to 1e-6 of the largest do not count as
directions, so a sum of few directions (LoRA) keeps their number. Vectors, embeddings, heads and routers get lambda * the mean
of the w_i (x_i - base). Costs one singular value decomposition for each matrix: about 6 s for 2048 x 2048 on one core, growing
with the cube of the smaller side.

Reference: Marczak et al., No Task Left Behind, https://arxiv.org/abs/2502.04959
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece
from plait.ops.spectral import svd


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    lambda_: float = param("Scale of the whole change.", default=1.0)


@method(Params, space="delta", base="required", unit="matrix", breaks=("equal models give that model",))
def iso_c(piece: Piece, p: Params) -> Tensor:
    def merge(matrix: Piece) -> Tensor:
        u, s, v = svd(weighted_sum(matrix.models, p.weight))
        return u @ v.mT * (s.sum() / max(1, len(s)))

    return by_matrix(piece, merge, [w / len(p.weight) for w in p.weight]).mul_(p.lambda_)
