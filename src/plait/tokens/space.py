"""What is known of one matrix of a vocabulary whose new rows are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plait.errors import PlanError
from plait.lazy import Tensor, torch
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import Index

BLOCK = 1 << 24  # entries that are read at once


@dataclass(frozen=True)
class Options:
    """How rows are approximated, in mergekit-tokensurgeon's words."""

    method: str = "omp"
    k: int = 64
    weight_scheme: str = "distance_proportional"
    cosine_similarity: bool = False
    subword_method: str = "mean"
    noise: float = 0.0
    scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Space:
    """The model's matrix, and what is known of the tokens that it lacks.

    `mine`, `theirs`: rows of the tokens that both have, in the model and in the donor; `wanted`: rows of the others in the
    donor; `pieces`: these as tokens of the model's own.
    """

    tensor: str
    head: bool  # rows that say which token comes next; else rows that are read
    own: Matrix
    donor: Matrix | None
    mine: Index
    theirs: Index
    wanted: Index
    pieces: Callable[[], Sequence[Sequence[int]]]
    options: Options

    @property
    def count(self) -> int:
        return len(self.wanted)

    @property
    def hidden(self) -> int:
        return self.own.spec.shape[1]

    def anchors(self) -> tuple[Tensor, Tensor]:
        """The rows of shared tokens in the model and in the donor, float32 [shared, …]."""
        if self.donor is None or not len(self.mine):
            raise PlanError(
                f"{self.options.method} needs tokens that both models have",
                wanted="some tokens in common",
                found="none",
                do="use -a subword, mean or john_hewitt",
            )
        return self.own.rows(self.mine).float(), self.donor.rows(self.theirs).float()

    def targets(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows of the wanted tokens in the donor, float32 [wanted, donor's hidden]."""
        assert self.donor
        part = self.wanted[start:stop]
        return self.donor.rows(part).float() if len(part) else torch.zeros((0, self.donor.spec.shape[1]))

    def blocks(self, columns: int) -> list[tuple[int, int]]:
        """[start, stop) of the wanted tokens, so many that a row of `columns` entries for each is at most `BLOCK`."""
        step = max(1, BLOCK // max(1, columns))
        return [(i, min(i + step, self.count)) for i in range(0, self.count, step)]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [hidden] and covariance [hidden, hidden] of the model's rows, float64, read in blocks."""
        rows, total = self.own.spec.shape[0], torch.zeros(self.hidden, dtype=torch.float64)
        step = max(1, BLOCK // self.hidden)
        for i in range(0, rows, step):
            total += self._block(i, step).sum(0)
        mean = total / rows
        square = torch.zeros((self.hidden, self.hidden), dtype=torch.float64)
        for i in range(0, rows, step):
            off = self._block(i, step) - mean
            square += off.T @ off
        return mean, square / max(1, rows - 1)

    def mean(self) -> Tensor:
        """The mean of all rows of the model, float64 [hidden]."""
        rows, step = self.own.spec.shape[0], max(1, BLOCK // self.hidden)
        total = torch.zeros(self.hidden, dtype=torch.float64)
        for i in range(0, rows, step):
            total += self._block(i, step).sum(0)
        return total / rows

    def _block(self, start: int, step: int) -> Tensor:
        stop = min(start + step, self.own.spec.shape[0])
        return self.own.rows(np.arange(start, stop)).double()
