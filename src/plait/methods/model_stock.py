"""Between the base and the average of the models, as far as the models' differences agree in direction.

1. delta_i = x_i - base, as one vector, or one for each row along the last axis (`filter_wise`).
2. c = mean over all pairs of cos(delta_i, delta_j); t = n c / (1 + (n - 1) c) for n models.
3. result = t * mean_i x_i + (1 - t) * base.

t is not clamped: differences that point against each other make it negative. |delta_i| |delta_j| below 1e-6 counts as 1e-6,
so the cosine of tiny differences goes to 0; where |1 + (n - 1) c| < 1e-6, t is 0.

Reference: Jang et al., Model Stock, https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from plait.lazy import Tensor, np, torch
from plait.method import method, param
from plait.ops.combine import weighted_sum
from plait.ops.gram import gram, silently
from plait.ops.pieces import Piece, Pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Params:
    filter_wise: bool = param("Take each row as a vector, instead of the whole tensor.", default=False)


@silently
def _share(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """t / n, from inner products `[..., models, models]`."""
    n = products.shape[-1]
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    cosines = products / np.maximum(norms[..., :, None] * norms[..., None, :], 1e-6)
    pairs = [np.clip(cosines[..., i, j], -1, 1) for i, j in combinations(range(n), 2)]
    c = np.mean(pairs, axis=0)
    divisor = 1 + (n - 1) * c
    none = np.abs(divisor) < 1e-6
    return np.where(none, 0.0, c / np.where(none, 1.0, divisor))


def _first(pieces: Pieces, p: Params) -> float | None:
    return None if p.filter_wise else float(_share(gram(pieces)))


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
    share = torch.from_numpy(_share((rows @ rows.mT).cpu().numpy())).to(rows.device)
    return (share[:, None] * rows.sum(-2)).to(piece.models[0].dtype)
