"""The delta that disturbs every model least, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plait.lazy import Tensor, torch
from plait.ops.spectral import right


def least_interference(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    inverse: Callable[[Tensor], Tensor],
    start: Sequence[float] | None = None,
) -> Tensor:
    """argmin over t of sum_i w_i |(t - d_i) d_i^T|^2, its inverse filtered; float64 `[out, in]` like each delta.

    With C = sum w_i d_i^T d_i and D = sum w_i d_i d_i^T d_i the minimum is D C^-1. `inverse` is given the eigenvalues of C in
    descending order, without those that count as zero, and says what to take for their inverses: 1 / c gives the minimum itself.
    With `start`, t begins at sum_i start_i d_i and goes the share c * inverse(c) of the way to the minimum, in each direction by
    itself. `weights` are not negative.

    The eigenvectors are those of the stacked deltas, on the smaller of `in` and models * `out`; one Gram matrix and one
    decomposition of that size, and products in its coordinates.
    """
    rows, columns = deltas[0].shape
    stack = deltas[0].new_empty(len(deltas), rows, columns)
    for part, d, w in zip(stack, deltas, weights, strict=True):
        torch.mul(d, w**0.5, out=part)
    s, v = right(stack.reshape(-1, columns))
    del stack
    spectrum = s.square()
    filtered = inverse(spectrum)
    left = 1 - spectrum * filtered
    merged = s.new_zeros(rows, len(s))
    for i, (d, w) in enumerate(zip(deltas, weights, strict=True)):
        x = d @ v  # [out, k]
        if w:
            merged += _cubed(x) * (filtered * w)
        if start:
            merged += x * (left * start[i])
    return merged @ v.mT


def ridged(share: float, columns: int) -> Callable[[Tensor], Tensor]:
    """The inverses of eigenvalues of a matrix with so many columns, after `share` of the mean of its diagonal is added to that.

    Without a ridge, directions in which the deltas hold nothing but rounding are followed like any other.
    """
    return lambda c: 1 / (c + share * c.sum() / columns)


def _cubed(x: Tensor) -> Tensor:
    """x x^T x."""
    return x @ (x.mT @ x) if x.shape[0] > x.shape[1] else (x @ x.mT) @ x
