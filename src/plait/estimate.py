"""What a plan will cost, told before the work: bytes, memory, and, of a sample, the seconds with inputs in the page cache."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from typing import cast

from plait.blocks import BLOCK, PAGE, WAITING
from plait.checkpoint import held_nbytes
from plait.checkpoint.directory import SafetensorsFiles
from plait.checkpoint.dtypes import torch_dtype
from plait.compute import PIECE, ROOMY, Copy, Stored, Task, merge_tensors
from plait.errors import PlaitError
from plait.kernels import fused
from plait.lazy import np, torch
from plait.matrices import is_matrix
from plait.ops.pieces import block_rows
from plait.plan import Plan, Step
from plait.run import default_threads, task, workshop
from plait.types import DTYPES, TensorSpec

WORKSPACE = 6  # float32 buffers of a piece that a method may hold besides its inputs
SEARCH = fused.DRAWN  # bytes that a first pass leaves of each model; counts and samples of a cut take less
TORCH = 260 << 20  # resident bytes that loading PyTorch takes
ROOM = (
    20 << 20
)  # and what is loaded last, when the weights are written: the card's templates, threads, buffers of files
SAMPLE = 1 << 22  # entries of each input: more than the processor's caches hold
#: pieces to try under a limit: the usual ones, and smaller ones, which take longer
PIECES = tuple(PIECE >> k for k in range(8))


@dataclass(frozen=True)
class Estimate:
    """Bytes read and written, peak resident bytes of the process, seconds of computing and copying on all threads."""

    read_nbytes: int
    write_nbytes: int
    memory: int
    seconds: float
    threads: int
    piece: int = PIECE


def memory(plan: Plan, threads: int, piece: int = PIECE) -> int:
    """Resident bytes of this process at the peak, while it runs the plan; of PyTorch and of the plan itself too."""
    blocks = (threads + WAITING) * _block(plan, piece)
    return resident() + ROOM + (TORCH if _needs_torch(plan) else 0) + threads * _largest(plan, threads, piece) + blocks


def portions(plan: Plan, threads: int, limit: int | None) -> tuple[int, int]:
    """(threads, entries of a piece) with which running the plan takes no more than `limit` bytes of memory in all.

    Smaller pieces first, then fewer threads; raises `PlaitError` when the least is too much.
    """
    if limit is None:
        return threads, PIECE
    tries = [(threads, piece) for piece in PIECES[:3]]
    tries += [(fewer, PIECES[2]) for fewer in range(threads - 1, 0, -1)]
    tries += [(1, piece) for piece in PIECES[3:]]
    for count, piece in tries:
        if memory(plan, count, piece) <= limit:
            return count, piece
    least = memory(plan, 1, PIECES[-1])
    most = max(plan.steps, key=lambda step: _working_set(plan, step, PIECES[-1]))
    raise PlaitError(
        "this merge does not fit into that memory",
        wanted=f"at least {math.ceil(least / 1e6)} MB, of which {most.name} needs "
        f"{math.ceil(_working_set(plan, most, PIECES[-1]) / 1e6)} MB",
        found=f"--max-memory of {limit / 1e6:.0f} MB",
        do=f"allow {math.ceil(least / 1e6)}MB or more"
        + (", or use a method that takes the matrices piece by piece" if _whole(most) else ""),
    )


def resident() -> int:
    """Bytes of memory that this process holds now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux: the most that it ever held
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def estimate(plan: Plan, threads: int | None = None, limit: int | None = None) -> Estimate:
    """All figures; takes some milliseconds for each kind of step, since it runs a sample of each.

    Raises `PlaitError` where the plan cannot run in `limit` bytes of memory.
    """
    threads, piece = portions(plan, threads or default_threads(), limit)
    held = memory(plan, threads, piece)
    groups: defaultdict[tuple[str | None, bool, tuple[str, ...]], list[Step]] = defaultdict(list)
    for step in plan.steps:
        codes = tuple(plan.spec_of(source).dtype for source in step.sources())
        groups[step.method.name if step.method else None, _whole(step), codes].append(step)
    seconds = 0.0
    for (method, _, codes), steps in groups.items():
        largest = max(steps, key=lambda s: s.spec.numel)
        if method is not None and largest.spec.numel:
            sample, shape = _sample(plan, largest, codes)
            seconds += sum(sample * _growth(step, *shape) for step in steps)
    return Estimate(plan.read_nbytes, plan.nbytes, held, seconds / threads, threads, piece)


def _largest(plan: Plan, threads: int, piece: int) -> int:
    """The working set of the step that needs most; those of merges that are its inputs with it."""
    inner = [_largest(nested, threads, PIECE) + 3 * 4 * PIECE for nested in plan.nested]
    return max((_working_set(plan, step, piece) for step in _kinds(plan).values()), default=0) + sum(inner)


def _kinds(plan: Plan) -> dict[tuple[object, ...], Step]:
    """One step of each kind that the memory depends on: models have many layers and few kinds of tensors."""
    if "kinds" in plan.memo:
        return cast(dict[tuple[object, ...], Step], plan.memo["kinds"])
    kinds: dict[tuple[object, ...], Step] = {}
    for step in plan.steps:
        codes = [plan.spec_of(source).dtype for source in step.sources()]
        held = sum(_held(plan, step))
        way = (
            (step.method.name, step.method.unit_of(step.params), step.method.takes_raw(step.params))
            if step.method
            else ()
        )
        kinds.setdefault((step.spec, way, _whole(step), *codes, held), step)
    plan.memo["kinds"] = kinds
    return kinds


def _held(plan: Plan, step: Step) -> list[int]:
    return [held_nbytes(plan.models[s.model].opened.checkpoint, s.name) for s in step.sources()]


def _working_set(plan: Plan, step: Step, piece: int) -> int:
    return sum(_held(plan, step)) + _pieces(plan, step, piece)


def _needs_torch(plan: Plan) -> bool:
    """Whether PyTorch will have to be loaded."""
    if "torch" in sys.modules:
        return False
    if plan.nested or not all(isinstance(m.opened.checkpoint, SafetensorsFiles) for m in plan.models):
        return True
    return not all(task(plan, step, in_order=True).fused for step in _kinds(plan).values() if step.spec.numel)


def _pieces(plan: Plan, step: Step, piece: int) -> int:
    made = task(plan, step, in_order=True, piece=piece)
    columns = step.spec.matrix[1]
    inputs = [DTYPES[plan.spec_of(source).dtype].bits / 8 for source in step.sources()]
    start, stop = max(made.cuts(), key=lambda cut: cut[1] - cut[0], default=(0, 0))
    entries = (stop - start) * columns
    if isinstance(made, Copy):
        return math.ceil(entries * sum(inputs))
    if made.fused:
        found_out = made.method.first is not None and made.method.gives == "entries"
        rows = (32 * columns + min(fused.MEMO, step.spec.numel) * len(step.inputs)) if made.unit == "row" else 0
        read = fused.WINDOW * len(inputs) if made.streams else math.ceil(entries * sum(inputs))
        return read + rows + (SEARCH * len(step.inputs) if found_out else 0)
    wide = 8 if made.double else 4
    if _whole(step):  # decompositions work in float64, on copies
        return math.ceil(entries * (sum(inputs) + wide * len(inputs) + 8 * (3 * len(inputs) + WORKSPACE)))
    return math.ceil(entries * (sum(inputs) + wide * (len(inputs) + WORKSPACE)))


def _block(plan: Plan, piece: int) -> int:
    """Bytes of what is written at once: of a block, or of a piece that is larger, having long rows; of no more than a tensor."""
    kinds = _kinds(plan).values()
    largest = min(BLOCK, ROOMY * piece, max((step.spec.nbytes for step in kinds), default=0))
    for step in kinds:
        made = task(plan, step, in_order=True, piece=piece)
        cuts = made.cuts() if isinstance(made, Copy) else made.cuts(made.written)
        rows = max((stop - start for start, stop in cuts), default=0) if made.fused else 0
        largest = max(largest, TensorSpec(made.dtype, (rows, step.spec.matrix[1])).nbytes)
    return largest + PAGE


def _whole(step: Step) -> bool:
    """Whether the method takes whole matrices of the step, or everything."""
    return _cubic(step) or (
        step.method is not None and step.method.unit_of(step.params) == "tensor" and len(step.spec.shape) > 1
    )


def _cubic(step: Step) -> bool:
    """Whether the method decomposes the step's matrices, as far as can be told."""
    unit = step.method.unit_of(step.params) if step.method else None
    return unit == "matrix" and is_matrix(step.name, step.spec.shape)


def _growth(step: Step, rows: int, columns: int) -> float:
    """How many times longer the step takes than a sample of that shape: by its size, or by what decompositions cost."""
    size = step.spec.numel / (rows * columns)
    return size * min(step.spec.shape[-2:]) / min(rows, columns) if _cubic(step) else size


def _sample(plan: Plan, step: Step, codes: tuple[str, ...]) -> tuple[float, tuple[int, int]]:
    """Seconds that a piece of such a step takes on one thread, from a run on random numbers; and its shape."""
    made = task(plan, step, in_order=True)
    assert isinstance(made, Task)
    rows, columns = step.spec.matrix
    if _cubic(step):  # a smaller matrix of the same proportions
        shrink = min(1.0, math.sqrt(PIECE / math.prod(step.spec.shape[-2:])))
        rows, columns = (max(2, math.ceil(side * shrink)) for side in step.spec.shape[-2:])
    else:
        size = SAMPLE if made.fused else PIECE
        rows = min(rows, block_rows(columns) * math.ceil(size / max(1, block_rows(columns) * columns)))
    best = math.inf
    with (_stored_run if made.fused else _tensor_run)(made, rows, columns, codes) as once:
        for _ in range(2):
            begun = time.thread_time()  # others may use the cores meanwhile
            once()
            best = min(best, time.thread_time() - begun)
    return best, (rows, columns)


@contextmanager
def _stored_run(made: Task, rows: int, columns: int, codes: Sequence[str]) -> Iterator[Callable[[], None]]:
    """What the kernels do with random numbers that they read from files in the cache, without PyTorch."""
    noise = np.random.default_rng(0)
    some = min(rows, block_rows(columns) * math.ceil(PIECE / max(1, block_rows(columns) * columns)))

    def stored(code: str, number: int) -> Stored:
        x = (noise.standard_normal((some, columns)) * 0.02).astype("<f2" if code == "F16" else "<f4")
        if code == "BF16":
            x = (x.view("<u4") >> 16).astype("<u2")
        file, stride = files.enter_context(_memory_file()), x.nbytes // some
        for row in range(0, rows, some):
            file.write(x[: rows - row].data)

        def read(row: int, stop: int, into: fused.Buffer | None) -> tuple[int, None]:
            buffer = into or fused.buffer(f"input {number}", stride * (stop - row))
            file.seek(row * stride)
            file.readinto(buffer.view[: stride * (stop - row)])
            return buffer.address, None

        return Stored(code, read, place=lambda row: (file.fileno(), row * stride))

    with ExitStack() as files:
        sample = replace(made, shape=(rows, columns), stored=[stored(code, i) for i, code in enumerate(codes)])

        def once() -> None:
            for _ in replace(sample, memo={}).run(check=False):
                pass

        yield once


def _memory_file() -> FileIO:
    """A file that is on no disk, where the system has such."""
    if hasattr(os, "memfd_create"):
        return FileIO(os.memfd_create("plait"), "w+")
    return tempfile.TemporaryFile(buffering=0)


@contextmanager
def _tensor_run(made: Task, rows: int, columns: int, codes: Sequence[str]) -> Iterator[Callable[[], None]]:
    """What PyTorch does with random numbers, on one thread."""
    noise = torch.Generator().manual_seed(0)
    sample = [(torch.randn(rows, columns, generator=noise) * 0.02).to(torch_dtype(code)) for code in codes]
    base, models = (sample[0], sample[1:]) if made.base else (None, sample)

    def once() -> None:
        with workshop() as one_thread:
            one_thread()
            merge_tensors(made.method, made.params, models, base, name=made.name, dtype=torch_dtype(made.dtype))

    yield once
