"""A checkpoint whose embeddings and heads have the rows of another vocabulary: a view, gathered as it is read."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.checkpoint import Checkpoint, Rows, home, notes, stored_nbytes
from plait.checkpoint.dtypes import torch_dtype
from plait.lazy import Tensor, torch
from plait.types import TensorSpec
from plait.vocabulary.rows import AVERAGE, MEAN, NONE, Index, Origins

GAP = 1 << 16  # bytes that are read in vain rather than read twice
BLOCK = 1 << 20  # entries read at once to take a mean


@dataclass(frozen=True)
class Matrix:
    """A tensor of a checkpoint whose axis 0 (or its last one) is the vocabulary."""

    checkpoint: Checkpoint
    name: str

    @property
    def spec(self) -> TensorSpec:
        return self.checkpoint.specs[self.name]

    def rows(self, index: Index) -> Tensor:
        """The rows of these numbers, in the stored dtype: one read for each run of rows that lie close together."""
        wanted, back = np.unique(index, return_inverse=True)
        gap = max(1, GAP // max(1, self.spec.nbytes // max(1, self.spec.matrix[0])))
        ends = [*(np.flatnonzero(np.diff(wanted) > gap) + 1).tolist(), len(wanted)]
        parts, start = [], 0
        for end in ends:
            low, high = int(wanted[start]), int(wanted[end - 1]) + 1
            block = self.checkpoint.read(self.name, (low, high))
            parts.append(block if high - low == end - start else block[torch.from_numpy(wanted[start:end] - low)])
            start = end
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found if np.array_equal(back, np.arange(len(wanted))) else found[torch.from_numpy(back)]


@dataclass(frozen=True)
class Gathered:
    """One realigned tensor: from where each row of the output's vocabulary comes."""

    spec: TensorSpec
    home: str  # the dtype of a merge that is told none
    axis: int  # of the vocabulary
    origins: Origins
    sources: Mapping[int, Matrix]  # by model
    sharing: Sequence[tuple[int, Index]]  # the models, with their rows, whose AVERAGE is taken
    _mean: list[Tensor] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def stored(self) -> int:
        """Bytes that are read for it: the rows that it takes of each model."""
        averaged = self.origins.model == AVERAGE
        taken = {m: int((self.origins.model == m).sum()) for m in self.sources}
        for m, own in self.sharing if averaged.any() else ():
            taken[m] += int((own[averaged] != NONE).sum())
        whole = {m: (stored_nbytes(s.checkpoint, s.name), s.spec.shape[self.axis]) for m, s in self.sources.items()}
        return sum(nbytes * taken[m] // max(1, rows) for m, (nbytes, rows) in whole.items())

    def read(self, rows: Rows | None) -> Tensor:
        start, stop = rows or (0, self.spec.matrix[0])
        made = self._along_rows(start, stop) if self.axis == 0 else self._along_columns(start, stop)
        return made if rows else made.reshape(self.spec.shape)

    def _along_rows(self, start: int, stop: int) -> Tensor:
        out = torch.zeros((stop - start, self.spec.matrix[1]), dtype=torch_dtype(self.spec.dtype))
        model, row = self.origins.model[start:stop], self.origins.row[start:stop]
        for number in np.unique(model).tolist():
            at = np.flatnonzero(model == number)
            if number >= 0:
                part = self.sources[number].rows(row[at])
            elif number == AVERAGE:
                part = self._average(start + at)
            elif number == MEAN:
                part = self._mean_row().expand(len(at), -1)
            else:
                continue
            if number >= 0 and len(at) == len(out):
                return part.to(out.dtype)
            out[torch.from_numpy(at)] = part.to(out.dtype)
        return out

    def _average(self, at: Index) -> Tensor:
        """The mean of the rows that the models have, summed in float64 in the recipe's order."""
        total = torch.zeros((len(at), self.spec.matrix[1]), dtype=torch.float64)
        count = torch.zeros((len(at), 1), dtype=torch.float64)
        for model, own in self.sharing:
            has = np.flatnonzero(own[at] != NONE)
            if len(has):
                into = torch.from_numpy(has)
                total[into] += self.sources[model].rows(own[at[has]]).double()
                count[into] += 1
        return total / count

    def _mean_row(self) -> Tensor:
        """The mean of all rows that are not MEAN themselves, read once."""
        with self._lock:
            if not self._mean:
                columns = self.spec.matrix[1]
                total, rows = torch.zeros(columns, dtype=torch.float64), np.flatnonzero(self.origins.model != MEAN)
                stop = int(rows[-1]) + 1 if len(rows) else 0
                for low in range(0, stop, step := max(1, BLOCK // max(1, columns))):
                    high = min(low + step, stop)
                    inside = torch.from_numpy(self.origins.model[low:high] != MEAN)
                    if inside.any():
                        total += self._rows_without_mean(low, high)[inside].double().sum(0)
                self._mean.append(total / max(1, len(rows)))
            return self._mean[0]

    def _rows_without_mean(self, low: int, high: int) -> Tensor:
        bare = Origins(np.where(self.origins.model == MEAN, -1, self.origins.model), self.origins.row)
        return Gathered(self.spec, self.home, 0, bare, self.sources, self.sharing)._along_rows(low, high)

    def _along_columns(self, start: int, stop: int) -> Tensor:
        """The same where the vocabulary is the last axis: few rows, each gathered by columns."""
        out = torch.zeros((stop - start, self.spec.matrix[1]), dtype=torch.float64)
        model, row = self.origins.model, self.origins.row
        held = {m: source.checkpoint.read(source.name, (start, stop)).double() for m, source in self.sources.items()}
        for number, whole in held.items():
            at = np.flatnonzero(model == number)
            out[:, torch.from_numpy(at)] = whole[:, torch.from_numpy(row[at])]
        if len(at := np.flatnonzero(model == AVERAGE)):
            total, count = torch.zeros((stop - start, len(at)), dtype=torch.float64), torch.zeros(len(at))
            for m, own in self.sharing:
                has = torch.from_numpy(np.flatnonzero(own[at] != NONE))
                total[:, has] += held[m][:, torch.from_numpy(own[at][has.numpy()])]
                count[has] += 1
            out[:, torch.from_numpy(at)] = total / count
        if len(at := np.flatnonzero(model == MEAN)):
            out[:, torch.from_numpy(at)] = out[:, torch.from_numpy(np.flatnonzero(model != MEAN))].mean(1, keepdim=True)
        return out.to(torch_dtype(self.spec.dtype))


class Realigned:
    """A checkpoint in which some tensors are gathered by the output's vocabulary, and the config tells its size."""

    def __init__(self, whole: Checkpoint, gathered: Mapping[str, Gathered], config: Mapping[str, Any]) -> None:
        self.config = config
        self._whole, self._gathered = whole, gathered
        self.specs: Mapping[str, TensorSpec] = {
            name: gathered[name].spec if name in gathered else spec for name, spec in whole.specs.items()
        }
        self.notes = notes(whole)
        self.stored = {n: gathered[n].stored if n in gathered else stored_nbytes(whole, n) for n in whole.specs}
        self.home = {name: gathered[name].home if name in gathered else home(whole, name) for name in whole.specs}

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        made = self._gathered.get(name)
        return made.read(rows) if made else self._whole.read(name, rows)
