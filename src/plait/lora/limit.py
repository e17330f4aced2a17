"""A matrix as a product of two narrow ones: how many ranks, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import PlaitError
from plait.ops import spectral
from plait.ops.random import uniform

OVERSAMPLING = 16
PASSES = 3  # of power iteration: each sharpens the spectrum that the sketch sees by a square
_PAYS = 4  # a sketch costs less than all singular values where it is this much narrower than the matrix
_BLOCK = 1 << 22  # entries of the residual computed at once


@dataclass(frozen=True)
class Limit:
    """How many ranks to keep: at most `rank`; the fewest with `energy` of the squared norm, or with a relative Frobenius
    `error` of at most that much; only singular values above `floor`. Without any of them: all."""

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        wrong = [("rank", self.rank, 1, None), ("energy", self.energy, 0, 1), ("error", self.error, 0, 1)]
        for name, value, low, high in wrong:
            if value is not None and not (low <= value and (high is None or value <= high)):
                wanted = f"{low} or more" if high is None else f"a number from {low} to {high}"
                do = f"pass another --{name}, or leave it out"
                raise PlaitError(f"the {name} cannot be {value}", wanted=wanted, found=str(value), do=do)

    def share(self) -> float | None:
        """The share of the squared norm that is enough, None if there is no such bound."""
        shares = [share for share in (self.energy, self.error and 1 - self.error**2) if share is not None]
        return 1.0 if self.error == 0 else max(shares, default=None)

    def count(self, s: Tensor, total: float) -> int | None:
        """How many of the leading singular values `s` (descending) to keep; None if there are too few to tell.

        `total` is the squared norm of the matrix.
        """
        share = self.share()
        wanted = self.rank if self.rank is not None else None
        if share is not None:
            kept = s.double().square().cumsum(0)
            enough = int((kept < share * total * (1 - 1e-12)).sum()) + 1
            if enough > len(s) and (wanted is None or wanted > len(s)):
                return None
            wanted = enough if wanted is None else min(wanted, enough)
        found = len(s) if wanted is None else min(wanted, len(s))
        return min(found, int((s > self.floor).sum()))


@dataclass(frozen=True)
class Narrow:
    """`left @ right`, of `[m, rank]` with orthonormal columns and `[rank, n]`, nearest to a matrix; float64."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def sides(self, distribute: bool = True) -> tuple[Tensor, Tensor]:
        """(B, A) of the product: the singular values on both sides, or all in A."""
        if not distribute:
            return self.left, self.right
        root = self.right.norm(dim=1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return self.left * root, self.right / root[:, None]


def narrow(x: Tensor, limit: Limit, name: str = "", seed: int = 0) -> Narrow:
    """The nearest product of as many ranks as `limit` allows to `x` `[m, n]`.

    Where few ranks of a large matrix are wanted, from a random sketch with power iteration (Halko, Martinsson and Tropp,
    https://arxiv.org/abs/0909.4061), drawn from (seed, name); else from all singular values. In both cases the product is the
    projection of `x` on the columns of `left`, so that at full rank nothing is lost to rounding of singular values.
    """
    x = x.double()
    total = float(x.square().sum())
    if total == 0:
        return Narrow(x.new_zeros(x.shape[0], 0), x.new_zeros(0, x.shape[1]))
    for width in _widths(limit):
        if _PAYS * (width + OVERSAMPLING) >= min(x.shape):
            break
        u, s = _sketched(x, width, name, seed)
        if (rank := limit.count(s, total)) is not None:
            return _projected(x, u[:, :rank])
    u, s, _ = spectral.svd(x, limit.rank if limit.share() is None else None, limit.floor)
    rank = limit.count(s, total)
    return _projected(x, u[:, : len(s) if rank is None else rank])


def _widths(limit: Limit) -> list[int]:
    """The ranks to look for in sketches, one after the other, until one tells how many are needed."""
    if limit.share() is None:
        return [] if limit.rank is None else [limit.rank]
    widths = [32, 128, 512, 2048]
    return widths if limit.rank is None else [w for w in widths if w < limit.rank] + [limit.rank]


def _sketched(x: Tensor, width: int, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """(u [m, width], s [width]), nearly the largest singular values and their left vectors."""
    columns, wide, small = x.shape[1], width + OVERSAMPLING, x.float()
    start = uniform(seed, name, 0, 0, columns * wide).reshape(columns, wide) - 0.5
    q = torch.linalg.qr(small @ start).Q
    for _ in range(PASSES):
        q = torch.linalg.qr(small @ torch.linalg.qr(small.mT @ q).Q).Q
    wide_q: Tensor = torch.linalg.qr(q.double()).Q
    inner = wide_q.mT @ x
    values, vectors = torch.linalg.eigh(inner @ inner.mT)
    s = values.flip(0).clamp(min=0).sqrt()
    return (wide_q @ vectors.flip(1))[:, :width], s[:width]


def _projected(x: Tensor, u: Tensor) -> Narrow:
    return Narrow(u, u.mT @ x)


def residual(x: Tensor, left: Tensor, right: Tensor) -> tuple[float, float]:
    """Squared Frobenius norms of `x - left @ right` and of `x`, in float64, block of rows by block of rows."""
    step = max(1, _BLOCK // max(1, x.shape[1]))
    left_over = 0.0
    for row in range(0, len(x), step):
        part = x[row : row + step].double() - left[row : row + step].double() @ right.double()
        left_over += float(part.square().sum())
    return left_over, float(x.double().square().sum())
