"""Split changes into rotations of the base and rests; average rotations as rotations, rests as numbers (OrthoMerge).

1. Of each matrix the smaller side is turned, the input side of a square one. R_i is the rotation for which base R_i (or R_i
   base) is nearest to x_i; Q_i = (R_i + 1)^-1 (R_i - 1) is its Cayley form, a skew matrix; rest_i = x_i - base R_i.
2. Q = sum_i s_i Q_i, enlarged to the length sum_i s_i |Q_i|, with weights s_i of sum 1, or as they are if they sum to 0;
   R = (1 - Q)^-1 (1 + Q).
3. result = base R + lambda * sum_i s_i rest_i.

Rotations keep the norms and angles of the base's rows, which sums do not. For orthogonal fine-tunes (OFT) and reinforcement
learning, where the rests are small. A model that turns a plane by 180 degrees has no Cayley form: all its change is rest.
Vectors, embeddings, heads and routers get base + sum_i s_i (x_i - base). Costs one singular value decomposition of the smaller
side and two solves a model for each matrix: about 25 s for three models and 2048 x 2048 on one core, growing with the cube.

Reference: Yang et al., Orthogonal Model Merging, https://arxiv.org/abs/2602.05943
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights
from plait.ops.pieces import Piece
from plait.ops.spectral import rotation, skew, turn


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model counts, relative to the others.", default=1.0)
    lambda_: float = param("Scale of the rests, what is not a rotation.", default=1.0)


@method(Params, space="delta", base="required", unit="matrix")
def ortho_merge(piece: Piece, p: Params) -> Tensor:
    shares = delta_weights(p.weight, normalize=True, scale=1.0)

    def merge(matrix: Piece) -> Tensor:
        assert matrix.base is not None
        base = matrix.base.double()
        if base.shape[0] < base.shape[1]:
            return _merge(base.mT, [x.mT for x in matrix.models], shares, p.lambda_).mT
        return _merge(base, matrix.models, shares, p.lambda_)

    return by_matrix(piece, merge, shares)


def _merge(base: Tensor, deltas: list[Tensor], shares: list[float], scale: float) -> Tensor:
    """The merged delta, the columns of `base` being turned."""
    q, length = base.new_zeros(base.shape[1], base.shape[1]), 0.0
    merged = torch.zeros_like(base)
    for delta, share in zip(deltas, shares, strict=True):
        if not delta.any():
            continue
        one = skew(rotation(base.mT @ (base + delta)))
        q += one * share
        length += share * float(torch.linalg.matrix_norm(one))
        merged += (delta - base @ turn(one)) * (share * scale)
    norm = float(torch.linalg.matrix_norm(q))
    return merged + base @ turn(q * (length / norm)) if norm > 1e-8 else merged
