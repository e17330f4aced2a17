"""One tensor: read the inputs piece by piece, take the base away, run the method, add the base, cast, check.

What a `Task` holds is all that decides the result. Pieces may be of any size and asked for in any order: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait import kernels
from plait.errors import MergeError
from plait.lazy import Tensor, torch
from plait.method import Method
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece, block_rows
from plait.types import TensorSpec

PIECE = 1 << 18  # entries of a piece: a few such float32 buffers fit into a core's cache

#: reads rows [start, stop) of one input in the matrix view; None for the whole tensor in its own shape
Reader = Callable[[tuple[int, int] | None], Tensor]


@dataclass(frozen=True)
class Task:
    """How one output tensor is computed."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the result
    method: Method
    params: Any
    models: Sequence[Reader]
    base: Reader | None
    seed: int = 0
    double: bool = False  # compute in float64
    piece: int = PIECE
    sources: Sequence[str] = ()  # what to call the base, if there is one, and the models
    depth: float = 0.0
    survey: Callable[[], Any] = lambda: None  # what the method knows of the whole model

    def run(self, check: bool = True) -> Iterator[tuple[int, Tensor]]:
        """The merged tensor from its first row to its last: (row, piece in the result's dtype)."""
        whole = self.whole()
        for row, stop in self.cuts():
            yield row, self.rows(row, stop, whole, check)

    def whole(self) -> Any:
        """What the method knows of the whole tensor before it sees a piece: its `first`, or its coefficients."""
        if not self.models or not TensorSpec("F32", self.shape).numel:
            return None
        whole = self.method.first(Stream(self), self.params) if self.method.first else None
        if self.method.gives == "coefficients":
            return self.method(self.params, whole)
        return whole

    def rows(self, row: int, stop: int, whole: Any, check: bool = True) -> Tensor:
        """Rows [row, stop) of the result."""
        piece = self.read(row, stop)
        if not piece.models:
            assert piece.base is not None
            merged = piece.base
        elif self.method.gives == "coefficients":
            merged = weighted_sum(piece.models, whole)
        else:
            merged = self.method(replace(piece, whole=whole), self.params)
        added = piece.base if piece.models and self.is_delta else None
        if kernels.narrows(merged, self.dtype) and (added is None or kernels.suit(added)):
            result, finite = kernels.narrow(merged, added, self.dtype)
        else:
            result = (merged if added is None else added + merged).to(self.dtype)
            finite = not check or _finite(result)
        if check and not finite:
            raise MergeError(
                f"{self.name} has values that are not finite",
                wanted="finite numbers in every output tensor",
                found=self._blame(row, stop),
                do="look at that input, or at the recipe's weights; --allow-nonfinite writes it all the same",
            )
        return result

    def cuts(self) -> Iterator[tuple[int, int]]:
        """The rows of each piece: whole blocks of whole rows, or everything where the method must see it at once."""
        spec = TensorSpec("F32", self.shape)
        rows, columns = spec.matrix
        unit = self.method.unit_of(self.params)
        if not spec.numel:
            return
        if unit == "tensor" or (unit == "row" and len(self.shape) < 2):
            yield 0, rows
            return
        step = block_rows(columns)
        step *= max(1, self.piece // max(1, step * columns))
        for row in range(0, rows, step):
            yield row, min(row + step, rows)

    def read(self, row: int, stop: int) -> Piece:
        """The inputs of rows [row, stop), in the computing dtype, as the method wants to see them."""
        unit, matrix = self.method.unit_of(self.params), TensorSpec("F32", self.shape).matrix
        everything = unit == "tensor" or (row, stop) == (0, matrix[0])

        def get(reader: Reader, base: Tensor | None = None) -> Tensor:
            x = reader(None if everything else (row, stop))
            if not self.double and kernels.widens(x):
                x = kernels.widen(x, base)
            else:
                x = x.to(torch.float64 if self.double else torch.float32)
                x = x - base.reshape(x.shape) if base is not None else x
            if unit == "tensor":
                return x.reshape(self.shape)
            if unit == "row" and len(self.shape) < 2:
                return x.reshape(1, -1)
            return x.reshape(stop - row, matrix[1])

        base = get(self.base) if self.base else None
        models = [get(m, base if self.is_delta else None) for m in self.models]
        if base is not None and not self.is_delta:
            models = [base, *models]
        return Piece(models, base, row, self.seed, self.name, shape=self.shape, depth=self.depth)

    @property
    def is_delta(self) -> bool:
        return self.method.space == "delta"

    def _blame(self, row: int, stop: int) -> str:
        readers = [*([self.base] if self.base else []), *self.models]
        for rows in ((row, stop), *self.cuts()):  # what is known of the whole spreads a value from any piece
            for source, reader in zip(self.sources, readers, strict=True):
                if not _finite(reader(rows)):
                    return f"NaN or infinity in {source}"
        return f"finite inputs, but a result beyond the range of {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Stream:
    """The pieces of a task, read anew each time they are gone through."""

    task: Task

    @property
    def entries(self) -> int:
        return TensorSpec("F32", self.task.shape).numel

    @property
    def survey(self) -> Any:
        return self.task.survey()

    def __iter__(self) -> Iterator[Piece]:
        for row, stop in self.task.cuts():
            yield self.task.read(row, stop)


def _finite(x: Tensor) -> bool:
    if not x.is_floating_point() or not x.numel():
        return True
    low, high = torch.aminmax(x)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def merge_tensors(
    method: Method,
    params: Any,
    models: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    name: str = "tensor",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    piece: int = PIECE,
    depth: float = 0.0,
) -> Tensor:
    """Merge tensors that are in memory, as a recipe would: same shape each, float; the result has `dtype`, or the first's.

    `piece` is the number of entries worked on at once; it changes no bit of the result.
    """
    first = models[0] if models else base
    assert first is not None
    wide = any(x.dtype == torch.float64 for x in [*models, *([base] if base is not None else [])])

    def reader(x: Tensor) -> Reader:
        matrix = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(-1, 1)
        return lambda rows: x if rows is None else matrix[rows[0] : rows[1]]

    task = Task(
        name=name,
        shape=tuple(first.shape),
        dtype=dtype or first.dtype,
        method=method,
        params=params,
        models=[reader(x) for x in models],
        base=reader(base) if base is not None else None,
        seed=seed,
        double=wide,
        piece=piece,
        depth=depth,
    )
    survey = method.survey
    if survey and first.numel() and (key := survey.key(params)) is not None:  # the one tensor is the whole model
        found = survey.find([Stream(task)], key)
        task = replace(task, survey=lambda: found)
    parts = [part.reshape(-1) for _, part in task.run(check=False)]
    return torch.cat(parts).reshape(first.shape) if parts else torch.empty(first.shape, dtype=task.dtype)


@dataclass(frozen=True)
class Copy:
    """One output tensor that is an input's, rounded to `dtype` if that differs; other inputs must hold the same bytes."""

    name: str
    shape: tuple[int, ...]
    inputs: Sequence[Reader]
    sources: Sequence[str]  # what to call them
    dtype: torch.dtype | None = None  # that of the inputs
    piece: int = PIECE

    def run(self, check: bool = True) -> Iterator[tuple[int, Tensor]]:
        for row, stop in self.cuts():
            yield row, self.rows(row, stop, None, check)

    def cuts(self) -> Iterator[tuple[int, int]]:
        rows, columns = TensorSpec("F32", self.shape).matrix
        step = max(1, self.piece // max(1, columns))
        for row in range(0, rows if columns else 0, step):
            yield row, min(row + step, rows)

    def whole(self) -> None:
        return None

    def rows(self, row: int, stop: int, whole: None = None, check: bool = True) -> Tensor:
        first, *others = (reader((row, stop)) for reader in self.inputs)
        for source, other in zip(self.sources[1:], others, strict=True):
            if not torch.equal(first.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)):
                raise MergeError(
                    f"{self.name} is not a floating tensor, and the models differ in it",
                    wanted="the same values in every model",
                    found=f"different values in {self.sources[0]} and {source}",
                    do="merge models that agree in it",
                )
        first = first.to(self.dtype or first.dtype)
        if check and not _finite(first):
            raise MergeError(
                f"{self.name} has values that are not finite",
                wanted="finite numbers in every output tensor",
                found=f"NaN or infinity in {self.sources[0]}",
                do="look at that input; --allow-nonfinite writes it all the same",
            )
        return first
