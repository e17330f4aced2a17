"""How many directions a delta has: its effective rank, and its rank above what rounding alone would give.

Exact through the Gram matrix of the shorter side up to 256 rows or columns. Beyond, each row is added with a random sign to
one of 256 rows (a count sketch: Charikar, Chen, Farach-Colton, https://doi.org/10.1016/S0304-3975(03)00400-6), whose singular
values are those of the matrix but for a known spread; this takes a small part of the time that the products would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.types import DTYPES

SKETCH = 256  # rows
#: bits of a significand, the hidden one included
DIGITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}


@dataclass(frozen=True)
class Spectrum:
    """Of one delta [rows, columns]: `effective` = (sum s^2)^2 / sum s^4 over its singular values s, from 1 to the shorter side.

    `directions`: singular values above rounding. `explained`: the share of sum s^2 that they have. `noise`: the share of it that
    rounding to the stored dtype would have. `sketched`: whether the numbers are of a sketch; then `directions` ends at 256.
    """

    effective: float
    directions: int
    explained: float
    noise: float
    sketched: bool


class Gathering:
    """Takes the rows of a delta as they come."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.kind = "rows" if rows <= SKETCH else "columns" if columns <= SKETCH else "sketch"
        wide = torch.float64 if self.kind == "columns" else torch.float32
        self._held = torch.zeros((min(rows, SKETCH) if self.kind != "columns" else columns, columns), dtype=wide)
        if self.kind == "sketch":
            generator = torch.Generator().manual_seed(rows)
            self._bucket = torch.randperm(rows, generator=generator) % SKETCH
            self._sign = torch.randint(0, 2, (rows, 1), generator=generator, dtype=torch.float32) * 2 - 1

    def add(self, row: int, delta: Tensor) -> None:
        """Rows [row, row + len(delta)) of the delta."""
        stop = row + len(delta)
        if self.kind == "rows":
            self._held[row:stop] = delta
        elif self.kind == "columns":
            wide = delta.double()
            self._held += wide.mT @ wide
        else:
            self._held.index_add_(0, self._bucket[row:stop], delta.float() * self._sign[row:stop])

    def spectrum(self, energy: float, weight: float, dtype: str) -> Spectrum | None:
        """`energy`: sum of the delta's squares; `weight`: of the model's, which is stored in `dtype`. None for no delta."""
        if not energy or not math.isfinite(energy) or not math.isfinite(weight):
            return None
        energy, weight, x = float(energy), float(weight), self._held.double()
        values = torch.linalg.eigvalsh(x if self.kind == "columns" else x @ x.mT).clamp(min=0).flip(0)
        if self.kind == "columns":
            values = values[: min(self.rows, self.columns)]
        fourth = float(values.square().sum())
        if self.kind == "sketch":
            # where two rows fall together with probability p, a sketch has (1 + p) sum s^4 + p (sum s^2)^2, to 2p of it
            energy, p = float(values.sum()), (self.rows / SKETCH - 1) / (self.rows - 1)
            fourth = (fourth - p * energy**2) / (1 + p)
        shorter = min(self.rows, self.columns)
        effective = min(float(shorter), max(1.0, energy**2 / fourth)) if fourth > 0 else float(shorter)
        digits = DIGITS.get(dtype, DTYPES[dtype].bits)
        # squares of rounding errors that are spread evenly over half a unit, for significands that are spread evenly
        noise = weight * 2.0 ** (2 - 2 * digits) * (3 / 7) / 12
        edge = 2 * math.sqrt(noise) * (self.rows**-0.5 + self.columns**-0.5)
        if self.kind == "sketch":
            edge = 2 * math.sqrt(noise) * (SKETCH**-0.5 + self.columns**-0.5)
        floor = max(edge, 1e-5 * math.sqrt(float(values[0])))
        directions = int((values.sqrt() > floor).sum())
        explained = float(values[:directions].sum()) / energy
        return Spectrum(effective, directions, min(1.0, explained), noise / energy, self.kind == "sketch")
