"""Between the base and the average of the models, as far as the models' differences agree in direction.

1. delta_i = x_i - base, as one vector, or one for each row along the last axis (`filter_wise`).
2. c = mean over all pairs of cos(delta_i, delta_j); t = n c / (1 + (n - 1) c) for n models.
3. result = t * mean_i x_i + (1 - t) * base.

t is not clamped: differences that point against each other make it negative. |delta_i| |delta_j| below 1e-6 counts as 1e-6,
so the cosine of tiny differences goes to 0; where |1 + (n - 1) c| < 1e-6, t is 0.

Reference: Jang et al., Model Stock, https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from plait.lazy import Tensor, torch
from plait.method import method, param
from plait.ops.combine import weighted_sum
from plait.ops.gram import Matrix, gram
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    filter_wise: bool = param("Take each row as a vector, instead of the whole tensor.", default=False)


def _share(products: Matrix) -> float:
    """t / n, from the inner products of n models."""
    n = len(products)
    norms = [math.sqrt(products[i][i]) for i in range(n)]
    cosines = [products[i][j] / max(norms[i] * norms[j], 1e-6) for i, j in combinations(range(n), 2)]
    c = sum(x if math.isnan(x) else max(-1.0, min(1.0, x)) for x in cosines) / len(cosines)
    divisor = 1 + (n - 1) * c
    return 0.0 if abs(divisor) < 1e-6 else c / divisor


def _first(pieces: Pieces, p: Params) -> float | None:
    return None if p.filter_wise else _share(gram(pieces))


@method(
    Params,
    space="delta",
    base="required",
    inputs=(2, None),
    unit=lambda p: "row" if p.filter_wise else "entry",
    first=_first,
    raw=lambda p: not p.filter_wise,
)
def model_stock(piece: Piece, p: Params) -> Tensor:
    if not p.filter_wise:
        return weighted_sum(piece.models, [piece.whole] * len(piece.models))
    rows = torch.stack(piece.models, dim=-2).double()  # [rows, models, columns]
    share = torch.tensor(
        [_share(products) for products in (rows @ rows.mT).tolist()], dtype=rows.dtype, device=rows.device
    )
    return (share[:, None] * rows.sum(-2)).to(piece.models[0].dtype)
