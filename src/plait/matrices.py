"""What spectral methods see: one matrix after the other, in float64. For functions of unit "matrix" (see `plait.method`)."""

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


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of that name and shape is a matrix `[out, in]`, or a stack of them (experts) along the first axis.

    It has two axes or three, of which the last two are longer than 1, and is no embedding, head or router.
    """
    return len(shape) in (2, 3) and min(shape[-2:]) > 1 and kind_of(name) not in TABLES


def by_matrix(piece: Piece, merge: Callable[[Piece], Tensor], shares: Sequence[float]) -> Tensor:
    """`merge` of each matrix; for everything that is not one, the sum of shares[i] * models[i].

    `merge` is given pieces that are one matrix, with models in float64; the base stays as it is. Where a model is not finite,
    all is NaN: LAPACK refuses such matrices.
    """
    first = piece.models[0]
    if not is_matrix(piece.tensor, piece.shape):
        return weighted_sum(piece.models, shares)

    def one(*tensors: Tensor) -> Tensor:
        models = tensors[: len(piece.models)]
        if not all(bool(x.isfinite().all()) for x in models):
            return torch.full_like(models[0], math.nan)
        base = None if piece.base is None else tensors[-1]
        return merge(replace(piece, models=[x.double() for x in models], base=base)).to(first.dtype)

    return each_matrix(piece, [*piece.models, *([] if piece.base is None else [piece.base])], one)


def each_matrix(piece: Piece, tensors: Sequence[Tensor], change: Callable[..., Tensor]) -> Tensor:
    """`change` of the matrices of all tensors, which are of the piece; the first tensor itself where it is no matrix."""
    first = tensors[0]
    if not is_matrix(piece.tensor, piece.shape):
        return first
    stacks = [x.reshape(-1, *piece.shape[-2:]) for x in tensors]  # mostly of one
    changed = [change(*matrices) for matrices in zip(*stacks, strict=True)]
    return (changed[0] if len(changed) == 1 else torch.stack(changed)).reshape(first.shape)
