"""Inner products between whole tensors: all that norms, angles and many methods need to know."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import combinations_with_replacement
from typing import ParamSpec, TypeVar

from plait import kernels
from plait.kernels import fused
from plait.lazy import Tensor, np, torch
from plait.ops.pieces import Pieces, added, raw_sums, stored, total

#: inner products, one row for each model: plain numbers, as loading numpy takes longer than what most methods do with them
Matrix = list[list[float]]

P = ParamSpec("P")
T = TypeVar("T")


def silently(function: Callable[P, T]) -> Callable[P, T]:
    """Without numpy's warnings: what is not finite stays so, and is told when it is written."""

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return quiet


def gram(pieces: Pieces, _params: object = None) -> Matrix:
    """G[i][j] = <x_i, x_j> over the whole tensor, for the models of the pieces in their order."""

    def products(block: list[Tensor]) -> Tensor:
        if kernels.suit(*block):
            return kernels.gram(block)
        x = torch.stack(block).double()
        return x @ x.T

    parts: list[list[float]] = []
    k = 0
    for piece in pieces:
        raw = stored(piece.models)
        if raw is None:
            whole: Matrix = total(pieces, products).tolist()
            return whole
        parts += raw_sums(raw, fused.PRODUCTS)
        k = len(raw)
    found = [[0.0] * k for _ in range(k)]
    for (a, b), value in zip(combinations_with_replacement(range(k), 2), added(parts), strict=True):
        found[a][b] = found[b][a] = value
    return found
