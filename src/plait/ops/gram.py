"""Inner products between whole tensors: all that norms, angles and many methods need to know."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from plait import kernels
from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops.pieces import Pieces, added, raw_sums, stored, total


def gram(pieces: Pieces, _params: object = None) -> NDArray[np.float64]:
    """G[i, j] = <x_i, x_j> over the whole tensor, for the models of the pieces in their order; `[models, models]`."""

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
            return total(pieces, products).numpy()
        parts += raw_sums(raw, fused.PRODUCTS)
        k = len(raw)
    found = np.empty((k, k))
    for (a, b), value in zip(combinations_with_replacement(range(k), 2), added(parts), strict=True):
        found[a, b] = found[b, a] = value
    return found
