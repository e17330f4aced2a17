"""One tensor: read the inputs piece by piece, take the base away, run the method, add the base, cast, check.

What a `Task` holds is all that decides the result. Pieces may be of any size and asked for in any order: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from plait import device as devices
from plait import kernels
from plait.checkpoint.dtypes import code_of, torch_dtype
from plait.errors import MergeError
from plait.kernels import fused
from plait.kernels.fused import Place, Raw, Span
from plait.lazy import Tensor, torch
from plait.matrices import is_matrix
from plait.method import Method
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece, block_rows
from plait.types import DTYPES, TensorSpec

_SAMPLED, _PLACES = 1 << 12, 32  # entries that a sample takes from one place, and from how many
PIECE = 1 << 18  # entries of a piece: a few such float32 buffers fit into a core's cache
ROOMY = 32  # bytes of the result for each entry of a piece, where it takes memory for its result only
LOOK = 1 << 22  # entries of a piece that is only looked at, and takes no memory

#: where a piece may be put for whoever takes it: (first row, bytes); None: anywhere
Room = Callable[[int, int], fused.Buffer | None]
#: reads rows [start, stop) of one input in the matrix view; None for the whole tensor in its own shape
Reader = Callable[[tuple[int, int] | None], Tensor]


@dataclass(frozen=True)
class Stored:
    """An input as it lies in memory or in a file: its dtype's code, and what gives rows [row, stop) as (address, owner)."""

    dtype: str
    #: what is read from files goes into the buffer, if there is one, or into one of the thread's own
    rows: Callable[[int, int, fused.Buffer | None], tuple[int, Any]]
    #: for a row its place in a file, if it has one: (descriptor, offset)
    place: Callable[[int], tuple[int, int]] | None = None
    #: the error where that file cannot be read: of errno, or 0 where it ended
    failed: Callable[[int], Exception] | None = None


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file, from `offset` on, which are also in memory; lent until the next piece is asked for."""

    view: memoryview
    file: int
    offset: int

    @property
    def nbytes(self) -> int:
        return self.view.nbytes


@dataclass(frozen=True)
class Task:
    """How one output tensor is computed."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # of the result, a safetensors code
    method: Method
    params: Any
    models: Sequence[Reader]
    base: Reader | None
    seed: int = 0
    double: bool = False  # compute in float64
    piece: int = PIECE
    device: str | None = None  # where PyTorch computes, if not on the CPU by the kernels
    sources: Sequence[str] = ()  # what to call the base, if there is one, and the models
    depth: float = 0.0
    survey: Callable[[], Any] = lambda: None  # what the method knows of the whole model
    #: the base, if there is one, and the models, for the kernels; empty where pieces are asked for at will
    stored: Sequence[Stored] = ()
    memo: dict[int, fused.Memo] = field(default_factory=dict, repr=False, compare=False)  # of `Raw` models

    def run(self, check: bool = True, room: Room | None = None) -> Iterator[tuple[int, Tensor | memoryview | Stretch]]:
        """The merged tensor from its first row to its last: (row, piece in the result's dtype, or its bytes).

        Bytes are lent until the next piece is asked for.
        """
        if self.fused:
            yield from self._run_fused(check, room)
            return
        if self.device is None:
            yield from self._run_tensors(check)
        else:
            with devices.stream(self.device):
                yield from self._run_tensors(check)

    def _run_tensors(self, check: bool) -> Iterator[tuple[int, Tensor]]:
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
        dtype = torch_dtype(self.dtype)
        if kernels.narrows(merged, dtype) and (added is None or kernels.suit(added)):
            result, finite = kernels.narrow(merged, added, dtype)
        else:
            result = (merged if added is None else added + merged).to(dtype)
            finite = not check or _finite(result)
        if check and not finite:
            raise self._not_finite(row, stop)
        return result if self.device is None else devices.to_cpu(result)

    @property
    def fused(self) -> bool:
        """Whether the kernels go from the stored inputs to the stored result, without tensors in between."""
        codes = {source.dtype for source in self.stored} | {self.dtype}
        return (
            bool(self.models)
            and self.device is None
            and 0 < len(self.stored) <= fused.MOST
            and codes <= kernels.DTYPES.keys()
            and not self.double
            and self.method.takes_raw(self.params)
            and TensorSpec("F32", self.shape).numel < 1 << 32
            and kernels.library() is not None
        )

    def _run_fused(self, check: bool, room: Room | None) -> Iterator[tuple[int, memoryview]]:
        whole, (dtype, size) = self.whole(), kernels.DTYPES[self.dtype]
        added = self.is_delta and self.base is not None
        for row, stop, piece in Stream(self).numbered(self.written if room else self.piece, whole):
            if self.method.gives == "coefficients":
                merged = fused.Merged(cast(list[Raw], piece.models), fused.SUM, whole)
            else:
                merged = self.method(piece, self.params)
            nbytes = merged.inputs[0].span.entries * size
            out = (room and room(row, nbytes)) or fused.buffer("out", nbytes)
            if not merged.write(out.address, dtype, added) and check:
                raise self._not_finite(row, stop)
            yield row, out.view[:nbytes]

    def _not_finite(self, row: int, stop: int) -> MergeError:
        return MergeError(
            f"{self.name} has values that are not finite",
            wanted="finite numbers in every output tensor",
            found=self._blame(row, stop),
            do="look at that input, or at the recipe's weights; --allow-nonfinite writes it all the same",
        )

    @cached_property
    def unit(self) -> str:
        return self.method.unit_of(self.params)

    @cached_property
    def columns(self) -> int:
        return TensorSpec("F32", self.shape).matrix[1]

    def cuts(self, piece: int | None = None) -> Iterator[tuple[int, int]]:
        """The rows of each piece: whole blocks of whole rows, one matrix, or everything, as the method must see it at once."""
        spec = TensorSpec("F32", self.shape)
        rows, columns = spec.matrix
        unit = self.method.unit_of(self.params)
        if not spec.numel:
            return
        if unit == "tensor" or (unit != "entry" and len(self.shape) < 2):
            yield 0, rows
            return
        step = block_rows(columns)
        step *= max(1, (piece or self.piece) // max(1, step * columns))
        if unit == "matrix" and is_matrix(self.name, self.shape):
            step = self.shape[-2]
        for row in range(0, rows, step):
            yield row, min(row + step, rows)

    def read(self, row: int, stop: int) -> Piece:
        """The inputs of rows [row, stop), in the computing dtype, as the method wants to see them."""
        unit, matrix = self.method.unit_of(self.params), TensorSpec("F32", self.shape).matrix
        everything = unit == "tensor" or (row, stop) == (0, matrix[0])

        def get(reader: Reader, base: Tensor | None = None) -> Tensor:
            x = reader(None if everything else (row, stop))
            if self.device is not None:
                x = devices.to_device(x, self.device)
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

    def raw(self, row: int, stop: int, counters: Sequence[list[Any]], whole: Any = None) -> Piece:
        """The inputs of rows [row, stop) as they are stored. `counters`: of this pass, a list for each model."""
        rows, columns = stop - row, self.columns
        start = row * columns
        if self.unit == "row" and len(self.shape) < 2:
            rows, columns = 1, rows
        places = [self._place(source, row, stop) for source in self.stored]
        under = self.base is not None and self.is_delta
        span = Span(rows, columns, start, TensorSpec("F32", self.shape).numel, places[0] if under else None)
        inputs = [
            Raw(place, span, counted, self.memo.setdefault(i, {}))
            for i, (place, counted) in enumerate(zip(places[under:], counters, strict=True))
        ]
        return Piece(cast(list[Tensor], inputs), None, row, self.seed, self.name, whole, self.shape, self.depth)

    def _place(self, source: Stored, row: int, stop: int) -> Place:
        """Where the kernels find these rows; what a method ranks row by row they look at several times, so it is read here."""
        code = kernels.DTYPES[source.dtype][0]
        if source.place and self.unit == "entry":
            file, offset = source.place(row)
            return Place(code, file=file, offset=offset, failed=source.failed)
        address, owner = source.rows(row, stop, None)
        return Place(code, address, alive=owner)

    @property
    def streams(self) -> bool:
        """Whether a piece takes no memory, since the kernels read it from files window by window."""
        return self.fused and self.unit == "entry" and all(source.place for source in self.stored)

    @property
    def written(self) -> int:
        """Entries of a piece that is written at once, where there is room for it: elsewhere they should fit into the cache."""
        return _roomy(self.piece, self.dtype) if self.streams else self.piece

    @property
    def is_delta(self) -> bool:
        return self.method.space == "delta"

    def _blame(self, row: int, stop: int) -> str:
        readers = [*([self.base] if self.base else []), *self.models]
        for rows in ((row, stop), *self.cuts()):  # what is known of the whole spreads a value from any piece
            for source, reader in zip(self.sources, readers, strict=True):
                if not _finite(reader(rows)):
                    return f"NaN or infinity in {source}"
        return f"finite inputs, but a result beyond the range of {DTYPES[self.dtype].name}"


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

    @property
    def raw(self) -> int:
        task = self.task
        return len(task.stored) - (task.is_delta and task.base is not None) if task.fused else 0

    def __iter__(self) -> Iterator[Piece]:
        for _, _, piece in self.numbered(LOOK if self.task.streams else self.task.piece):
            yield piece

    def numbered(self, size: int, whole: Any = None) -> Iterator[tuple[int, int, Piece]]:
        """(first row, the row after the last, piece), pieces having about `size` entries; `whole`: what they are given."""
        counters: list[list[Any]] = [[] for _ in range(self.raw)]
        for row, stop in self.task.cuts(size):
            yield row, stop, self.task.raw(row, stop, counters, whole) if counters else self.task.read(row, stop)

    def sample(self) -> list[tuple[int, int]]:
        rows, columns = TensorSpec("F32", self.task.shape).matrix
        each = min(rows, max(1, _SAMPLED // columns))
        count = min(rows // each, _PLACES)
        starts = (i * (rows - each) // max(1, count - 1) for i in range(count))
        return [(row, row + each) for row in starts]

    def at(self, row: int, stop: int) -> Piece:
        return self.task.raw(row, stop, [[] for _ in range(self.raw)]) if self.raw else self.task.read(row, stop)


def _roomy(piece: int, dtype: str) -> int:
    return 8 * ROOMY * piece // DTYPES[dtype].bits


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
        matrix = x.reshape(TensorSpec("F32", tuple(x.shape)).matrix)
        return lambda rows: x if rows is None else matrix[rows[0] : rows[1]]

    task = Task(
        name=name,
        shape=tuple(first.shape),
        dtype=code_of(dtype or first.dtype),
        method=method,
        params=params,
        models=[reader(x) for x in models],
        base=reader(base) if base is not None else None,
        seed=seed,
        double=wide,
        piece=piece,
        depth=depth,
        stored=[stored(code_of(x.dtype), reader(x)) for x in [*([base] if base is not None else []), *models]],
    )
    task = alone(task)
    return gathered(task.shape, task.dtype, task.run(check=False))


def alone(task: Task) -> Task:
    """The task with its one tensor as the whole model, for methods that want to know of that."""
    survey, key = task.method.survey, None
    if survey is None or not TensorSpec("F32", task.shape).numel or (key := survey.key(task.params)) is None:
        return task
    found = survey.find([survey.seen(Stream(replace(task, stored=())), task.params)], key)
    return replace(task, survey=lambda: found)


def stored(dtype: str, reader: Reader) -> Stored:
    """An input that is given as tensors."""

    def rows(row: int, stop: int, _into: object) -> tuple[int, Tensor]:
        x = reader((row, stop)).contiguous()
        return x.data_ptr(), x

    return Stored(dtype, rows)


def gathered(shape: tuple[int, ...], dtype: str, pieces: Iterable[tuple[int, Tensor | memoryview | Stretch]]) -> Tensor:
    """The whole tensor from its pieces."""
    parts = []
    for _, x in pieces:
        if isinstance(x, Tensor):
            parts.append(x.reshape(-1))
        else:
            view = x.view if isinstance(x, Stretch) else x
            parts.append(torch.frombuffer(bytearray(view), dtype=torch_dtype(dtype)))
    return torch.cat(parts).reshape(shape) if parts else torch.empty(shape, dtype=torch_dtype(dtype))


@dataclass(frozen=True)
class Copy:
    """One output tensor that is an input's, rounded to `dtype` if that differs; other inputs must hold the same bytes."""

    name: str
    shape: tuple[int, ...]
    inputs: Sequence[Reader]
    sources: Sequence[str]  # what to call them
    dtype: str  # of the result, a safetensors code
    piece: int = PIECE
    stored: Sequence[Stored] = ()  # the inputs, where their bytes can be taken as they are

    def run(self, check: bool = True, room: Room | None = None) -> Iterator[tuple[int, Tensor | memoryview | Stretch]]:
        fused, place = self.fused, self.stored[0].place if self.stored else None
        for row, stop in self.cuts():
            if not fused:
                yield row, self.rows(row, stop, None, check)
                continue
            into = room(row, self._nbytes(stop - row)) if room and place else None
            got = [source.rows(row, stop, None if i else into) for i, source in enumerate(self.stored)]
            view = self._bytes([address for address, _ in got], stop - row, check)
            view = into.view if into else view
            yield row, Stretch(view, *place(row)) if place else view

    @property
    def fused(self) -> bool:
        """Whether bytes are copied without a tensor in between."""
        plain = self.dtype in kernels.DTYPES or not DTYPES[self.dtype].floating
        return plain and {source.dtype for source in self.stored} == {self.dtype} and kernels.library() is not None

    def _nbytes(self, rows: int) -> int:
        return TensorSpec(self.dtype, (rows, TensorSpec("F32", self.shape).matrix[1])).nbytes

    def _bytes(self, inputs: Sequence[int], rows: int, check: bool) -> memoryview:
        nbytes = self._nbytes(rows)
        first, *others = inputs
        for source, other in zip(self.sources[1:], others, strict=True):
            if not fused.equal(first, other, nbytes):
                raise self._differ(source)
        if check and self.dtype in kernels.DTYPES:
            code, size = kernels.DTYPES[self.dtype]
            if not kernels.call("finite", first, code, nbytes // size):
                raise self._not_finite()
        return fused.view(first, nbytes)

    def cuts(self) -> Iterator[tuple[int, int]]:
        rows, columns = TensorSpec("F32", self.shape).matrix
        step = max(1, _roomy(self.piece, self.dtype) // max(1, columns))
        for row in range(0, rows if columns else 0, step):
            yield row, min(row + step, rows)

    def whole(self) -> None:
        return None

    def rows(self, row: int, stop: int, whole: None = None, check: bool = True) -> Tensor:
        first, *others = (reader((row, stop)) for reader in self.inputs)
        for source, other in zip(self.sources[1:], others, strict=True):
            if not torch.equal(first.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)):
                raise self._differ(source)
        first = first.to(torch_dtype(self.dtype))
        if check and not _finite(first):
            raise self._not_finite()
        return first

    def _differ(self, source: str) -> MergeError:
        return MergeError(
            f"{self.name} is not a floating tensor, and the models differ in it",
            wanted="the same values in every model",
            found=f"different values in {self.sources[0]} and {source}",
            do="merge models that agree in it",
        )

    def _not_finite(self) -> MergeError:
        return MergeError(
            f"{self.name} has values that are not finite",
            wanted="finite numbers in every output tensor",
            found=f"NaN or infinity in {self.sources[0]}",
            do="look at that input; --allow-nonfinite writes it all the same",
        )
