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
    if first.ndim not in (2, 3) or min(first.shape[-2:]) < 2 or kind_of(piece.tensor) in TABLES:
        return weighted_sum(piece.models, shares)
    if not all(bool(x.isfinite().all()) for x in piece.models):
        return torch.full_like(first, math.nan)

    def one(at: int | slice) -> Tensor:
        base = None if piece.base is None else piece.base[at]
        return merge(replace(piece, models=[x[at].double() for x in piece.models], base=base)).to(first.dtype)

    return one(slice(None)) if first.ndim == 2 else torch.stack([one(i) for i in range(len(first))])
