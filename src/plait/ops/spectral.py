"""Bricks over one matrix: its singular vectors, its polar factor, a basis of its rows.

All take and give float64. Singular vectors have no sign of their own, so what is built from them must use each pair together, as
u v^T; then equal inputs give equal results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plait.lazy import Tensor, torch

#: singular values up to this share of the largest count as zero: in a difference of float32 weights they are rounding
ZERO = 1e-6
#: a Gram matrix squares the singular values, which halves their digits; below this share of the largest too few are left
EXACT = 1e-4


def right(x: Tensor, rank: int | None = None, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """The largest singular values of `x` [m, n] and their right vectors: float64 `[k]` in descending order, `[n, k]`.

    k is at most `rank` (all if None), and values that count as zero, or are not above `floor`, are left out: a zero matrix has
    none. They come from the eigenvectors of the smaller Gram matrix; where one that is wanted is below 1e-4 of the largest, or
    is likely to be, from LAPACK's SVD, which takes up to twice as long. The relative error is about 1e-8 at most.
    """
    m, n = x.shape
    if m < n:
        s, u = right(x.mT, rank, floor)
        return s, x.mT @ u / s
    if rank is None and m < 2 * n:  # the smallest of all singular values is likely to be below EXACT
        return _lapack(x, None, floor)
    values, vectors = torch.linalg.eigh(x.mT @ x)
    s, v = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    wanted = _count(s, rank, floor)
    if wanted and s[wanted - 1] < EXACT * s[0]:
        return _lapack(x, rank, floor)
    return s[:wanted], v[:, :wanted]


def _lapack(x: Tensor, rank: int | None, floor: float) -> tuple[Tensor, Tensor]:
    _, s, vt = torch.linalg.svd(x, full_matrices=False)
    k = _count(s, rank, floor)
    return s[:k], vt[:k].mT


def _count(s: Tensor, rank: int | None, floor: float) -> int:
    """How many of the leading singular values are wanted and not zero."""
    return int((s > (ZERO * s[:1]).clamp(min=floor))[:rank].sum())


def svd(x: Tensor, rank: int | None = None, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(u [m, k], s [k], v [n, k]) with x = u diag(s) v^T, as far as `rank` and `floor` allow; see `right`."""
    if x.shape[0] < x.shape[1]:
        v, s, u = svd(x.mT, rank, floor)
        return u, s, v
    s, v = right(x, rank, floor)
    return x @ v / s, s, v


def low_rank(x: Tensor, rank: int) -> Tensor:
    """The nearest matrix to `x` of at most this rank."""
    _, v = right(x, rank)
    return x @ v @ v.mT


def polar(x: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows) that is nearest to `x`, of its shape: u v^T.

    Directions in which `x` is zero stay zero, so that of a matrix without full rank comes a partial isometry.
    """
    u, _, v = svd(x, min(x.shape))  # seldom needs more digits than the Gram matrix has
    return u @ v.mT


def row_basis(matrices: Sequence[Tensor]) -> Tensor | None:
    """Orthonormal columns `[n, all rows]` that span the rows of all matrices `[rows, n]`; None if these are not fewer than n."""
    rows = sum(len(x) for x in matrices)
    if rows >= matrices[0].shape[1]:
        return None
    basis: Tensor = torch.linalg.qr(torch.cat(list(matrices)).mT).Q
    return basis


def rotation(x: Tensor) -> Tensor:
    """The rotation nearest to a square matrix: orthogonal, with determinant 1. What `x` does not determine is not turned."""
    size = float(torch.linalg.matrix_norm(x)) or 1.0
    u, _, vt = torch.linalg.svd(x + 1e-13 * size * _one(x))
    r: Tensor = u @ vt
    if torch.linalg.slogdet(r).sign < 0:
        r -= 2 * u[:, -1:] @ vt[-1:]  # the reflection of least cost
    return r


def skew(r: Tensor) -> Tensor:
    """Cayley's map of a rotation to a skew matrix, (R + 1)^-1 (R - 1); zeros if it turns a plane by 180 degrees (to 1e-4)."""
    q, failed = torch.linalg.solve_ex(r + _one(r), r - _one(r))
    q = (q - q.mT) / 2
    return q if not failed and float(q.abs().max()) < 1e4 else torch.zeros_like(q)


def turn(q: Tensor) -> Tensor:
    """R - 1 for the rotation R of a skew matrix: 2 (1 - Q)^-1 Q; NaN where Q is beyond what float64 can tell from infinity."""
    half, failed = torch.linalg.solve_ex(_one(q) - q, q)
    r: Tensor = half * (math.nan if failed else 2)
    return r


def _one(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=x.dtype, device=x.device)
