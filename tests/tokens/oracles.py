"""Rows of new tokens in plain numpy, float64, from the papers and from what mergekit-tokensurgeon gives."""

from __future__ import annotations

import numpy as np

Rows = np.ndarray


def pursuit(x: Rows, atoms: Rows, k: int) -> tuple[list[int], Rows]:
    """Orthogonal matching pursuit of one target: the chosen atoms, and their least-squares coefficients."""
    chosen: list[int] = []
    weights, residual = np.zeros(0), x.copy()
    for _ in range(min(k, len(atoms))):
        size = np.abs(atoms @ residual)
        size[chosen] = -1
        chosen.append(int(size.argmax()))
        weights = np.linalg.lstsq(atoms[chosen].T, x, rcond=None)[0]
        residual = x - atoms[chosen].T @ weights
    return chosen, weights


def omp(x: Rows, mine: Rows, theirs: Rows, k: int) -> Rows:
    chosen, weights = pursuit(x, theirs, k)
    return weights @ mine[chosen]


def common_interpolation(x: Rows, mine: Rows, theirs: Rows, k: int, scheme: str, cosine: bool) -> Rows:
    if cosine:
        near = theirs @ x / np.linalg.norm(theirs, axis=1) / np.linalg.norm(x)
        at = np.argsort(-near, kind="stable")[:k]
    else:
        near = np.linalg.norm(theirs - x, axis=1)
        at = np.argsort(near, kind="stable")[:k]
    if scheme == "distance_proportional":
        weights = near[at] if cosine else 1 / near[at]
        weights = weights / weights.sum()
    elif scheme == "least_squares":
        weights = np.linalg.lstsq(theirs[at].T, x, rcond=None)[0]
    else:  # the smallest squared error under the condition that the weights sum to 1
        off = theirs[at] - x
        weights = np.linalg.pinv(off @ off.T) @ np.ones(len(at))
        weights = weights / weights.sum()
    return weights @ mine[at]


def landmark_pca(x: Rows, mine: Rows, theirs: Rows, k: int) -> Rows:
    left, sizes, right = np.linalg.svd(theirs - theirs.mean(0), full_matrices=False)
    kept = min(k, int((sizes**2 > sizes[0] ** 2 * 1e-10).sum()))
    weights = (x - theirs.mean(0)) @ right[:kept].T / sizes[:kept] @ left[:, :kept].T
    return mine.mean(0) + weights @ (mine - mine.mean(0))


def subword(rows: Rows, method: str, head: bool) -> Rows:
    ordered = rows[::-1] if head else rows
    if method == "first_last":
        return ordered[-1]
    if method == "weighted_mean":
        return np.average(ordered, axis=0, weights=np.arange(1, len(rows) + 1))
    return rows.sum(0) if method == "sum" else rows.mean(0)
