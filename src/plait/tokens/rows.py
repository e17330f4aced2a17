"""A checkpoint whose vocabulary has other rows: those that stay are gathered when read, those that are new are made once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.checkpoint import Checkpoint, Rows, home, stored_nbytes
from plait.checkpoint.dtypes import torch_dtype
from plait.lazy import Tensor, torch
from plait.run import default_threads
from plait.types import TensorSpec
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import NONE, Index

#: for each row of the output the row that it has been, or NONE; and what makes the others, in their order, float32 [new, columns]
Settled = tuple[Index, Callable[[], Tensor]]


@dataclass(frozen=True)
class Made:
    """One tensor of the vocabulary with `count` rows; what they are is settled when the first is read."""

    own: Matrix
    count: int
    settle: Callable[[], Settled]
    held: int = 0  # bytes, while the new rows are made and after
    _known: list[tuple[Index, Tensor]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec("F64" if self.own.spec.dtype == "F64" else "F32", (self.count, *self.own.spec.shape[1:]))

    def read(self, rows: Rows | None) -> Tensor:
        row, new = self._whole()
        start, stop = rows or (0, self.count)
        part = row[start:stop]
        out = torch.zeros((stop - start, self.spec.matrix[1]), dtype=torch_dtype(self.spec.dtype))
        if len(kept := np.flatnonzero(part != NONE)):
            out[torch.from_numpy(kept)] = self.own.rows(part[kept]).to(out.dtype)
        if len(lacking := np.flatnonzero(part == NONE)):
            first = int((row[:start] == NONE).sum())
            out[torch.from_numpy(lacking)] = new[first : first + len(lacking)].to(out.dtype)
        return out if rows else out.reshape(self.spec.shape)

    def _whole(self) -> tuple[Index, Tensor]:
        with self._lock:
            if not self._known:
                row, make = self.settle()
                new = make() if (row == NONE).any() else torch.zeros((0, 1))
                self._known.append((row, new))
            return self._known[0]


class Revised:
    """`inner` with some tensors of its vocabulary made anew, and a config that tells of it."""

    def __init__(self, inner: Checkpoint, made: Mapping[str, Made], config: Mapping[str, Any]) -> None:
        self.config = config
        self._inner, self._made = inner, made
        self.specs: Mapping[str, TensorSpec] = {
            name: made[name].spec if name in made else spec for name, spec in inner.specs.items()
        }
        self.home: Mapping[str, str] = {name: home(inner, name) for name in inner.specs}
        # rows are made one tensor at a time, whatever the number of threads, and a plan counts what each of these holds
        self.held: Mapping[str, int] = {name: each.held // default_threads() for name, each in made.items()}
        self.stored: Mapping[str, int] = {name: stored_nbytes(inner, name) for name in inner.specs}

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        made = self._made.get(name)
        return made.read(rows) if made else self._inner.read(name, rows)
