"""The numbers of one tensor, gathered in one pass over its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait import kernels
from plait.checkpoint.dtypes import torch_dtype
from plait.compute import PIECE
from plait.diff.sides import Pair, Side
from plait.diff.spectrum import DIGITS, Gathering, Spectrum
from plait.diff.sums import Sums


@dataclass(frozen=True)
class Measured:
    """One tensor: its sums, and for each model but the first the spectrum of its delta (None for vectors and no change)."""

    pair: Pair
    layer: int | None
    kind: str
    module: str
    sums: Sums
    spectra: tuple[Spectrum | None, ...]


def measure(sides: Sequence[Side], pair: Pair, ranks: bool, progress: Callable[[int], None] | None) -> Measured:
    """Read one tensor of every side, a few rows at a time. Holds a few pieces, and for `ranks` 256 rows a model."""
    wide = torch.float64 if "F64" in pair.dtypes else torch.float32
    count = len(sides) - 1
    ranks = ranks and min(pair.rows, pair.columns) > 1
    gathering = [Gathering(pair.rows, pair.columns) if ranks else None for _ in range(count)]
    parts: list[list[float]] = []
    largest, rounded = [0.0] * count, [0] * count
    step = max(1, PIECE // max(1, pair.columns))
    for row in range(0, pair.rows if pair.columns else 0, step):
        stop = min(row + step, pair.rows)
        read = [side.checkpoint.read(pair.name, (row, stop)) for side in sides]
        first = _widened(read[0], None, wide)
        deltas = [_widened(x, first, wide) for x in read[1:]]
        parts.append([*_gram([first, *deltas]), *_signs(deltas)])
        for i, delta in enumerate(deltas):
            low, high = torch.aminmax(delta)
            largest[i] = max(largest[i], -float(low), float(high))
            rounded[i] += _rounded(first, read[0], read[i + 1], delta, pair.dtypes, i + 1)
            if gathered := gathering[i]:
                gathered.add(row, delta)
        if progress:
            progress(sum(x.numel() * x.element_size() for x in read))
    sums = _sums(parts, count, pair.rows * pair.columns, largest, rounded)
    spectra = tuple(
        gathered.spectrum(sums.gram[i + 1, i + 1], sums.size(i) ** 2, pair.dtypes[i + 1]) if gathered else None
        for i, gathered in enumerate(gathering)
    )
    arch = sides[0].arch
    place = arch.place(pair.name)
    return Measured(pair, place.layer, arch.kind(pair.name), place.module, sums, spectra)


def _widened(x: Tensor, base: Tensor | None, wide: torch.dtype) -> Tensor:
    """x, or x - base, in the computing dtype."""
    if wide is torch.float32 and kernels.widens(x):
        return kernels.widen(x, base)
    return x.to(wide) if base is None else x.to(wide) - base


def _gram(vectors: list[Tensor]) -> list[float]:
    if kernels.suit(*vectors):
        return list(kernels.gram(vectors).reshape(-1).tolist())
    x = torch.stack([v.reshape(-1) for v in vectors]).double()
    return list((x @ x.T).reshape(-1).tolist())


def _signs(deltas: list[Tensor]) -> list[float]:
    """Counts, exact in float32 for a piece: both changed and signs equal less unequal, [k, k] each; conflict; contested."""
    if len(deltas) == 1:
        changed = float(torch.count_nonzero(deltas[0]))
        return [changed, changed, 0.0, 0.0]
    signs = torch.stack([d.reshape(-1).float() for d in deltas]).sign_()
    moved = signs.abs()
    balance, both = signs @ signs.T, moved @ moved.T
    conflict = torch.count_nonzero((signs.amax(0) > 0) & (signs.amin(0) < 0))
    contested = torch.count_nonzero(moved.sum(0) > 1)
    return [*both.reshape(-1).tolist(), *balance.reshape(-1).tolist(), float(conflict), float(contested)]


def _rounded(first: Tensor, a: Tensor, b: Tensor, delta: Tensor, dtypes: tuple[str, ...], i: int) -> int:
    """Entries of b that are those of a, rounded to the coarser of both dtypes."""
    if dtypes[0] == dtypes[i]:
        return delta.numel() - int(torch.count_nonzero(delta))
    coarse = torch_dtype(min(dtypes[0], dtypes[i], key=lambda code: DIGITS.get(code, 0)))
    return int(torch.count_nonzero(a.to(coarse).float() == b.to(coarse).float()))


def _sums(parts: list[list[float]], k: int, entries: int, largest: list[float], rounded: list[int]) -> Sums:
    total = [math.fsum(column) for column in zip(*parts, strict=True)] if parts else []
    values = np.array(total or [0.0] * ((k + 1) ** 2 + 2 * k * k + 2))
    gram, both, balance, rest = np.split(values, np.cumsum([(k + 1) ** 2, k * k, k * k]))
    changed = both.reshape(k, k)
    return Sums(
        entries=entries,
        gram=gram.reshape(k + 1, k + 1),
        changed=changed,
        agree=(changed + balance.reshape(k, k)) / 2,
        conflict=int(rest[0]),
        contested=int(rest[1]),
        largest=tuple(largest),
        rounded=tuple(rounded),
    )
