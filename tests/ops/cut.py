"""Tensors in memory, cut into pieces of so many rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from plait.ops.pieces import Piece


@dataclass
class Cut:
    models: list[Tensor]  # [rows, columns] each
    rows: int = 1 << 30
    passes: list[int] = field(default_factory=list)  # one entry each time the pieces are gone through

    @property
    def entries(self) -> int:
        return self.models[0].numel()

    @property
    def raw(self) -> int:
        return 0

    def __iter__(self):
        self.passes.append(1)
        for row in range(0, len(self.models[0]), self.rows):
            yield Piece([x[row : row + self.rows] for x in self.models], None, row)
