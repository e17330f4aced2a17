"""Inner products between whole tensors: all that norms, angles and many methods need to know."""

from __future__ import annotations

from plait import kernels
from plait.lazy import Tensor, torch
from plait.ops.pieces import Pieces, total


def gram(pieces: Pieces, _params: object = None) -> Tensor:
    """G[i, j] = <x_i, x_j> over the whole tensor, for the models of the pieces in their order; float64 `[models, models]`."""

    def products(block: list[Tensor]) -> Tensor:
        if kernels.suit(*block):
            return kernels.gram(block)
        x = torch.stack(block).double()
        return x @ x.T

    return total(pieces, products)
