"""What spectral methods see: one matrix after the other, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from plait.arch.names import kind_of
from plait.lazy import Tensor, torch
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece

#: tensors of these kinds are tables with a row for each token or expert, not maps between two spaces
TABLES = ("embedding", "head", "router")


def by_matrix(piece: Piece, merge: Callable[[Piece], Tensor], shares: Sequence[float]) -> Tensor:
    """`merge` of each matrix; for everything that is not one, the sum of shares[i] * models[i].

    A tensor with two axes is a matrix `[out, in]`, one with three (experts) a stack of them along the first axis, unless one of
    the sides is 1 or the tensor's name is that of an embedding, a head or a router. `merge` is given pieces whose models are
    float64; the base stays as it is. Where a model is not finite, all is NaN: LAPACK refuses such matrices.
    """
    first = piece.models[0]
    if not is_matrix(piece.tensor, first):
        return weighted_sum(piece.models, shares)
    if not all(bool(x.isfinite().all()) for x in piece.models):
        return torch.full_like(first, math.nan)

    def one(base: Tensor | None, *models: Tensor) -> Tensor:
        return merge(replace(piece, models=[x.double() for x in models], base=base)).to(first.dtype)

    if piece.base is None:
        return each_matrix(piece.tensor, piece.models, lambda *models: one(None, *models))
    return each_matrix(piece.tensor, [piece.base, *piece.models], one)


def is_matrix(name: str, x: Tensor) -> bool:
    """Whether a tensor of that name and shape is a matrix, or a stack of them."""
    return x.ndim in (2, 3) and min(x.shape[-2:]) > 1 and kind_of(name) not in TABLES


def each_matrix(name: str, tensors: Sequence[Tensor], change: Callable[..., Tensor]) -> Tensor:
    """`change` of the matrices of all tensors, one after the other; the first tensor itself where it is no matrix."""
    first = tensors[0]
    if not is_matrix(name, first):
        return first
    return (
        change(*tensors)
        if first.ndim == 2
        else torch.stack([change(*(x[i] for x in tensors)) for i in range(len(first))])
    )
