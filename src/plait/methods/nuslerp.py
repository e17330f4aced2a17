"""Spherical interpolation between two models, or between their differences to a base.

With weights w_1, w_2 the position on the arc is t = w_2 / (w_1 + w_2), 0.5 if the weights cancel. What is a vector: the whole
tensor (`nuslerp_flatten`), each row along the last axis, or each column along the first (`nuslerp_row_wise`, the name is
historical). Parallel and opposite vectors are interpolated in a straight line; a zero vector counts as perpendicular.

Reference: Shoemake, Animating rotation with quaternion curves (1985), https://doi.org/10.1145/325334.325242
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import PerModel, method, param
from plait.ops.combine import weighted_sum
from plait.ops.gram import gram
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
    products = gram(pieces)
    first, second = _on_the_arc(products[0, 0], products[1, 1], products[0, 1], p)
    return [float(first), float(second)]


def _on_the_arc(square1: Tensor, square2: Tensor, product: Tensor, p: Params) -> tuple[Tensor, Tensor]:
    """Coefficients of the two vectors, from their squared norms and inner product, float64 of any shape."""
    total = p.weight[0] + p.weight[1]
    t = p.weight[1] / total if abs(total) >= 1e-6 else 0.5
    cosine = product / (square1.sqrt().clamp(min=1e-7) * square2.sqrt().clamp(min=1e-7))
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    line = 1 - cosine**2 <= 1e-12  # up to rounding: the arc between opposite vectors is not known
    sine = torch.where(line, 1.0, sine)
    return (
        torch.where(line, 1 - t, ((1 - t) * angle).sin() / sine),
        torch.where(line, t, (t * angle).sin() / sine),
    )


@method(Params, space="delta", base="optional", inputs=(2, 2), unit=_unit, first=_first)
def nuslerp(piece: Piece, p: Params) -> Tensor:
    x, y = piece.models
    if piece.whole:
        return weighted_sum([x, y], piece.whole)
    axis = 0 if p.nuslerp_row_wise else -1
    a, b = (v.double().transpose(axis, -1) for v in (x, y))
    first, second = _on_the_arc(row_sums(a * a), row_sums(b * b), row_sums(a * b), p)
    return (first * a + second * b).transpose(axis, -1).to(x.dtype)
