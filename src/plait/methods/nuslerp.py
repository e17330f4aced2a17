"""Spherical interpolation between two models, or between their differences to a base.

With weights w_1, w_2 the position on the arc is t = w_2 / (w_1 + w_2), 0.5 if |w_1 + w_2| < 1e-6. What is a vector: the whole
tensor (`nuslerp_flatten`), each row along the last axis, or each column along the first (`nuslerp_row_wise`, the name is
historical). Parallel and opposite vectors are interpolated in a straight line; a zero vector counts as perpendicular.

Reference: Shoemake, Animating rotation with quaternion curves (1985), https://doi.org/10.1145/325334.325242
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plait.lazy import Tensor, np, torch
from plait.method import PerModel, method, param
from plait.ops.combine import weighted_sum
from plait.ops.gram import gram, silently
from plait.ops.pieces import Piece, Pieces, row_sums


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each of the two models counts.")
    nuslerp_flatten: bool = param("Take the whole tensor as one vector.", default=True)
    nuslerp_row_wise: bool = param("Without flatten: take columns as vectors instead of rows.", default=False)


def _unit(p: Params) -> str:
    if p.nuslerp_flatten:
        return "entry"
    return "tensor" if p.nuslerp_row_wise else "row"


def _first(pieces: Pieces, p: Params) -> list[float] | None:
    if not p.nuslerp_flatten:
        return None
    (square1, product), (_, square2) = gram(pieces)
    first, second = _on_the_arc(np, np.float64(square1), np.float64(square2), np.float64(product), p)
    return [float(first), float(second)]


@silently
def _on_the_arc(xp: Any, square1: Any, square2: Any, product: Any, p: Params) -> tuple[Any, Any]:
    """Coefficients of the two vectors, from their squared norms and inner product, float64 of any shape; `xp`: numpy or torch."""
    total = p.weight[0] + p.weight[1]
    t = p.weight[1] / total if abs(total) >= 1e-6 else 0.5
    cosine = product / (xp.clip(xp.sqrt(square1), 1e-7, None) * xp.clip(xp.sqrt(square2), 1e-7, None))
    angle = xp.arccos(xp.clip(cosine, -1, 1))
    sine = xp.sin(angle)
    line = 1 - cosine**2 <= 1e-12  # up to rounding: the arc between opposite vectors is not known
    sine = xp.where(line, 1.0, sine)
    return (
        xp.where(line, 1 - t, xp.sin((1 - t) * angle) / sine),
        xp.where(line, t, xp.sin(t * angle) / sine),
    )


@method(
    Params, space="delta", base="optional", inputs=(2, 2), unit=_unit, first=_first, raw=lambda p: p.nuslerp_flatten
)
def nuslerp(piece: Piece, p: Params) -> Tensor:
    x, y = piece.models
    if piece.whole:
        return weighted_sum([x, y], piece.whole)
    axis = 0 if p.nuslerp_row_wise else -1
    a, b = (v.double().transpose(axis, -1) for v in (x, y))
    first, second = _on_the_arc(torch, row_sums(a * a), row_sums(b * b), row_sums(a * b), p)
    merged: Tensor = (first * a + second * b).transpose(axis, -1).to(x.dtype)
    return merged
