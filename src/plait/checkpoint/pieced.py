"""Tensors put together from rows of others, and tensors whose matrices are turned: what experts are packed and unpacked with."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from plait.checkpoint import Checkpoint, Rows, home
from plait.checkpoint.dtypes import torch_dtype
from plait.errors import ModelError
from plait.lazy import torch
from plait.types import TensorSpec


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [start, stop) of the matrix view of a tensor of the inner checkpoint."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of this dtype and shape, made of these runs (one or more), one below the other."""

    spec: TensorSpec
    runs: tuple[Run, ...]


class Pieced:
    """`inner` with some tensors made of rows of its tensors. `tensors`: name -> what it is made of, or None for inner's own.

    Reads the rows that are asked for and no others. Raises `ModelError` when the runs do not add up to the tensor's rows,
    or differ from it in dtype or columns.
    """

    def __init__(self, inner: Checkpoint, tensors: Mapping[str, Made | None]) -> None:
        self._inner = inner
        self._made = {name: made for name, made in tensors.items() if made}
        self._ends = {name: list(accumulate(r.stop - r.start for r in made.runs)) for name, made in self._made.items()}
        for name, made in self._made.items():
            (rows, columns), found = made.spec.matrix, [inner.specs[run.source] for run in made.runs]
            kinds = {(spec.dtype, spec.matrix[1]) for spec in found}
            if kinds - {(made.spec.dtype, columns)} or (self._ends[name] or [0])[-1] != rows:
                raise ModelError(
                    f"{name} cannot be put together",
                    wanted=f"{rows} rows of {columns} in {made.spec.dtype}",
                    found=", ".join(sorted({f"{r.source}: {s}" for r, s in zip(made.runs, found, strict=True)})[:4]),
                    do="save the model again with these tensors in one dtype and of sizes that fit together",
                )
        self.specs: Mapping[str, TensorSpec] = {
            name: made.spec if made else inner.specs[name] for name, made in tensors.items()
        }
        self.home: Mapping[str, str] = {
            name: home(inner, made.runs[0].source if made else name) for name, made in tensors.items()
        }

    @property
    def config(self) -> Mapping[str, Any]:
        return self._inner.config

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        if name not in self._made:
            return self._inner.read(name, rows)
        spec, runs, ends = self._made[name].spec, self._made[name].runs, self._ends[name]
        count, columns = spec.matrix
        start, stop = rows or (0, count)
        out = torch.empty((stop - start, columns), dtype=torch_dtype(spec.dtype))
        at, i = start, bisect_right(ends, start)
        while at < stop:
            end = min(stop, ends[i])
            skipped = at - (ends[i] - (runs[i].stop - runs[i].start))
            low = runs[i].start + skipped
            out[at - start : end - start] = self._inner.read(runs[i].source, (low, low + end - at))
            at, i = end, i + 1
        return out if rows else out.reshape(spec.shape)


class Turned:
    """`inner` with the matrices of the 3-D tensors `names` transposed: [E, a, b] is read as [E, b, a].

    A row of the turned tensor is a column of the stored one, so one matrix of the E is read at a time, and the last one
    that a thread has read is kept.
    """

    def __init__(self, inner: Checkpoint, names: Collection[str]) -> None:
        self._inner = inner
        self._names = frozenset(names)
        self._last = threading.local()
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(spec.dtype, (spec.shape[0], spec.shape[2], spec.shape[1])) if name in self._names else spec
            for name, spec in inner.specs.items()
        }
        self.home: Mapping[str, str] = {name: home(inner, name) for name in inner.specs}

    @property
    def config(self) -> Mapping[str, Any]:
        return self._inner.config

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        if name not in self._names:
            return self._inner.read(name, rows)
        spec = self.specs[name]
        (count, columns), height = spec.matrix, spec.shape[1]
        start, stop = rows or (0, count)
        out = torch.empty((stop - start, columns), dtype=torch_dtype(spec.dtype))
        at = start
        while at < stop:
            matrix = at // height
            end = min(stop, (matrix + 1) * height)
            low = at - matrix * height
            out[at - start : end - start] = self._matrix(name, matrix).t()[low : low + end - at]
            at = end
        return out if rows else out.reshape(spec.shape)

    def _matrix(self, name: str, number: int) -> torch.Tensor:
        """One stored matrix, [a, b]."""
        key, matrix = getattr(self._last, "read", (None, None))
        if key != (name, number) or matrix is None:
            height = self.specs[name].shape[2]
            matrix = self._inner.read(name, (number * height, (number + 1) * height))
            self._last.read = ((name, number), matrix)
        return matrix
