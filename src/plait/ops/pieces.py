"""What a method is given: pieces of one output tensor, cut so that no result depends on where the cuts are.

A tensor is seen as a matrix (`TensorSpec.matrix`) and handed out in pieces of whole rows. Sums over a whole tensor are taken
block by block: blocks have a size that follows from the shape alone, each is summed by itself, and the block sums are added
exactly (`math.fsum`). So neither the size of the pieces nor the number of threads can change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from plait.kernels.fused import Raw, sums
from plait.lazy import Tensor, torch
from plait.ops.random import uniform

BLOCK = 1 << 16  # entries
_PART = 1 << 14  # entries of a row that are summed at once


def block_rows(columns: int) -> int:
    """Rows of one block of a matrix with so many columns."""
    return max(1, BLOCK // max(1, columns))


@dataclass(frozen=True)
class Piece:
    """Some rows of every input of one tensor, in the computing dtype. The tensors are lent: never change them in place.

    For methods that only hand them to bricks they may be `Raw`: as they are stored, for the kernels.
    """

    models: list[Tensor]  # [rows, columns] each: weights, or differences to the base where the method works on deltas
    base: Tensor | None  # [rows, columns]
    row: int = 0  # the first row's number in the whole tensor
    seed: int = 0
    tensor: str = ""  # the output's name
    whole: Any = field(default=None, repr=False)  # what the method's `first` found out about the whole tensor
    shape: tuple[int, ...] = ()  # of the whole tensor
    depth: float = 0.0  # of the tensor's layer, from 0 (first) to 1 (last); 0 before the layers, 1 after them
    merged: Tensor | None = None  # the merged difference, for bricks after the method

    @property
    def start(self) -> int:
        """Number of the piece's first entry in the whole tensor, row-major."""
        return self.row * self.models[0].shape[-1] if self.row and self.models else 0

    def uniform(self, model: int) -> Tensor:
        """Random numbers in [0, 1), float32 `[rows, columns]`: a pure function of (seed, tensor, model, entry)."""
        like = self.models[model]
        return uniform(self.seed, self.tensor, model, self.start, like.numel(), like.device).reshape(like.shape)


class Pieces(Protocol):
    """The pieces of one tensor, in order; may be gone through as often as a method needs."""

    @property
    def entries(self) -> int:
        """Entries of the whole tensor."""

    @property
    def survey(self) -> Any:
        """What the method's `survey` found out about the whole model; None where it wanted to know nothing."""

    def __iter__(self) -> Iterator[Piece]: ...

    @property
    def raw(self) -> int:
        """How many models a piece has, if they are `Raw`; 0 where they are tensors."""

    def sample(self) -> list[tuple[int, int]]:
        """The rows [row, stop) of some small pieces of one size from all over a large tensor, for `at`."""

    def at(self, row: int, stop: int) -> Piece:
        """The piece of these rows, by itself."""


def total(
    pieces: Pieces,
    measure: Callable[[list[Tensor]], Tensor],
    of: Callable[[Piece], list[Tensor]] = lambda piece: piece.models,
) -> Tensor:
    """The exact sum over all blocks of `measure(block)`, float64; `of` says which tensors of a piece are measured.

    A block is a list of flat tensors, one for each that `of` returns; `measure` adds them up with `row_sums`.
    """
    parts: list[list[float]] = []  # numbers, not tensors: small tensors that live on would fragment the heap
    shape: tuple[int, ...] = ()
    for piece in pieces:
        tensors = of(piece)
        size = block_rows(tensors[0].shape[-1])
        blocks = zip(*(torch.split(x, size) for x in tensors), strict=True)
        measured = torch.stack([measure([r.reshape(-1) for r in rows]) for rows in blocks])
        shape = tuple(measured.shape[1:])
        parts += measured.double().reshape(len(measured), -1).tolist()  # waits for a GPU once
    return torch.tensor(added(parts), dtype=torch.float64).reshape(shape)


def added(parts: list[list[float]]) -> list[float]:
    """The exact sums of columns."""
    return [math.fsum(column) for column in zip(*parts, strict=True)]


def stored(tensors: Sequence[Tensor] | Sequence[Raw]) -> list[Raw] | None:
    """The tensors, if they are as they are stored, and the kernels are to work on them."""
    return [x for x in tensors if isinstance(x, Raw)] if tensors and isinstance(tensors[0], Raw) else None


def raw_sums(inputs: Sequence[Raw], kind: int) -> list[list[float]]:
    """`fused.sums` for the blocks that `total` has."""
    columns = inputs[0].span.columns
    return sums(inputs, kind, block_rows(columns) * columns)


def row_sums(x: Tensor) -> Tensor:
    """The sums along the last axis, which stays with length 1, in the dtype of `x`; a scalar is its own sum.

    Torch splits a long sum among its threads, so that the last bits depend on their number; these parts are too short for that.
    """
    if x.ndim == 0:
        return x
    parts = torch.cat([part.sum(-1, keepdim=True) for part in torch.split(x, _PART, dim=-1)], dim=-1)
    return parts if parts.shape[-1] == 1 else parts.sum(-1, keepdim=True)
