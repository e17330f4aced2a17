"""Run a plan: every step, on a few threads, into whatever takes the pieces.

Threads take whole steps; while one waits for the disk, another computes. Which thread does what changes no bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from plait.checkpoint.ahead import LIMIT
from plait.checkpoint.dtypes import torch_dtype
from plait.checkpoint.files import AHEAD, StoredFiles, failed
from plait.compute import PIECE, Copy, Reader, Stored, Stream, Stretch, Task, gathered, stored
from plait.device import PIECE as LARGE
from plait.device import THREADS, full, prepare, shared
from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops.pieces import Pieces
from plait.plan import Input, Plan, Step

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)

#: takes rows of an output tensor: (tensor's name, first row, piece or its bytes, which are lent)
Sink = Callable[[str, int, Tensor | memoryview | Stretch], None]
#: where a piece of a tensor may be put for the sink: (tensor's name, first row, bytes)
Rooms = Callable[[str, int, int], fused.Buffer | None]
#: is told the bytes of output that were done since the last call
Progress = Callable[[int], None]


def default_threads(devices: tuple[str, ...] = ()) -> int:
    """One thread a core that this process may use; a few for each device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(cores, THREADS * len(devices)) if devices else cores


def task(
    plan: Plan, step: Step, in_order: bool = False, *, piece: int = PIECE, device: str | None = None
) -> Task | Copy:
    """What computes one step, in pieces of so many entries where its method lets it, on the CPU or on `device`.

    `in_order`: its pieces will be asked for one after the other, which kernels need.
    """
    called = [f"{source.name} of {plan.models[source.model].ref}" for source in step.sources()]
    if step.method is None:
        readers = [_reader(plan, i) for i in step.inputs]
        lent = [_stored(plan, source, i) for i, source in enumerate(step.inputs)] if in_order else ()
        return Copy(step.name, step.spec.shape, readers, called, step.spec.dtype, piece=piece, stored=lent)
    codes = {plan.spec_of(source).dtype for source in step.sources()} | {step.spec.dtype}
    return Task(
        name=step.name,
        shape=step.spec.shape,
        dtype=step.spec.dtype,
        method=step.method,
        params=step.params,
        models=[_reader(plan, i) for i in step.inputs],
        base=_reader(plan, step.base) if step.base else None,
        seed=plan.seed,
        double="F64" in codes,
        piece=piece,
        device=device,
        sources=called,
        depth=step.depth,
        survey=_survey(plan, step),
        stored=[_stored(plan, source, i) for i, source in enumerate(step.sources())] if in_order else (),
    )


def _survey(plan: Plan, step: Step) -> Callable[[], Any]:
    """What the step's method knows of the whole model: found out when it is first asked for, and once."""
    survey, key = step.method.survey if step.method else None, None
    if survey is None or (key := survey.key(step.params)) is None:
        return lambda: None
    find = survey.find

    def found() -> Any:
        with plan.memo.setdefault("surveying", threading.RLock()):
            if (find, key) not in plan.memo:
                plan.memo[find, key] = find(list(_surveyed(plan, find, key)), key)
            return plan.memo[find, key]

    return found


def _surveyed(plan: Plan, find: Callable[..., Any], key: Any) -> Iterator[Pieces]:
    """The tensors whose methods want the same survey, as these see them."""
    for step in plan.steps:
        survey = step.method.survey if step.method and step.spec.numel else None
        if survey and survey.find is find and survey.key(step.params) == key:
            made = task(plan, step)
            assert isinstance(made, Task)
            yield survey.seen(Stream(made), step.params)


def _reader(plan: Plan, source: Input) -> Reader:
    read, limit = plan.models[source.model].opened.checkpoint.read, source.rows
    if limit is None:
        return lambda rows: read(source.name, rows)
    return lambda rows: read(source.name, rows or (0, limit))


def _stored(plan: Plan, source: Input, number: int) -> Stored:
    """An input for the kernels: from a file into a buffer of the thread's own; from other checkpoints as a tensor."""
    opened = _files(plan, source)
    if opened is None:
        return stored(plan.spec_of(source).dtype, _reader(plan, source))

    extent = opened.extents[source.name]
    file = opened.file(extent.path)
    stride, name = extent.spec.nbytes // max(1, extent.spec.matrix[0]), f"input {number}"

    def rows(row: int, stop: int, into: fused.Buffer | None) -> tuple[int, None]:
        buffer = into or fused.buffer(name, stride * (stop - row))
        opened.fill(extent.path, extent.offset + row * stride, buffer.view[: stride * (stop - row)])
        return buffer.address, None

    return Stored(
        extent.spec.dtype,
        rows,
        place=lambda row: (file, extent.offset + row * stride),
        failed=lambda number: failed(extent.path, number),
    )


class Ahead:
    """A thread that has the system fetch what steps will read, in their order and some way before them: the disk is not idle."""

    def __init__(self, plan: Plan, steps: Iterable[Step]) -> None:
        self._plan, self._steps = plan, steps
        self._fetched, self._used, self._changed, self._stopped = 0, 0, threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="plait-ahead", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def used(self, nbytes: int) -> None:
        """So much was read."""
        with self._changed:
            self._used += nbytes
            self._changed.notify()

    def _work(self) -> None:
        for step in self._steps:
            sources = [(opened, source.name) for source in step.sources() if (opened := _files(self._plan, source))]
            sizes = [opened.extents[name].spec.nbytes for opened, name in sources]
            for at in range(0, max(sizes, default=0), AHEAD):
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._fetched - self._used < LIMIT)
                    if self._stopped:
                        return
                    self._fetched += sum(min(AHEAD, max(0, size - at)) for size in sizes)
                for opened, name in sources:
                    with suppress(OSError):  # told when it is read
                        opened.ahead(name, at, AHEAD)


def _files(plan: Plan, source: Input) -> StoredFiles | None:
    """The checkpoint of an input whose bytes lie in a file as they are."""
    opened = plan.models[source.model].opened.checkpoint
    return opened if isinstance(opened, StoredFiles) and source.name in opened.extents else None


def run(
    plan: Plan,
    sink: Sink,
    *,
    threads: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
    skip: Collection[str] = (),
    piece: int | None = None,
    devices: tuple[str, ...] = (),
    rooms: Rooms | None = None,
) -> None:
    """Compute every tensor of the plan, but those to `skip`, and hand its pieces to `sink`, which must be thread-safe.

    `check`: stop at values that are not finite. The first error stops the rest and is raised. `piece`: entries worked on at once;
    changes no bit. `devices`: the steps are shared among them, a thread or more for each; on the CPU by default.
    """
    stop, place = threading.Event(), shared(devices)
    size = piece or (LARGE if devices else PIECE)
    threads = max(threads or default_threads(devices), len(devices))

    todo = [step for step in plan.steps if step.name not in skip]

    def work(step: Step) -> None:
        made = task(plan, step, in_order=True, piece=size, device=place())
        if not (made.fused and all(_files(plan, source) for source in step.sources())):  # views compute with torch
            one_thread()
        read, written = sum(plan.spec_of(source).nbytes for source in step.sources()), step.spec.nbytes
        for row, piece in made.run(check, partial(rooms, step.name) if rooms else None):
            if stop.is_set():
                return
            sink(step.name, row, piece)
            fetched.used(read * piece.nbytes // written)
            if progress:
                progress(piece.nbytes)

    if devices and any(step.method and step.method.unit_of(step.params) in ("matrix", "tensor") for step in todo):
        prepare(devices)
    with workshop() as one_thread, Ahead(plan, todo) as fetched, ThreadPoolExecutor(threads, "plait") as pool:
        futures = [pool.submit(work, step) for step in todo]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for future in futures:
                future.cancel()
        for future in futures:
            if future.done() and not future.cancelled():
                try:
                    future.result()
                except RuntimeError as error:
                    if not devices or not isinstance(error, torch.cuda.OutOfMemoryError):  # the name for all devices
                        raise
                    raise full(devices, threads) from error


def tensors(plan: Plan, check: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every output tensor, whole, one after the other in the plan's order."""
    for step in plan.steps:
        yield step.name, tensor(plan, step, check)


def tensor(plan: Plan, step: Step, check: bool = True) -> Tensor:
    """One output tensor, whole."""
    with workshop() as one_thread:
        one_thread()
        return gathered(step.spec.shape, step.spec.dtype, task(plan, step, in_order=True).run(check))


class OnDemand:
    """Rows of a plan's tensors, computed when they are asked for; reads no more of the inputs than these need.

    A merge that is another's input is read like this, piece after piece: what was found out about the last few tensors as a
    whole is kept, and so is their last piece.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._begun: OrderedDict[str, _Begun] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, step: Step, rows: tuple[int, int], check: bool = True) -> Tensor:
        """Rows [start, stop) of the matrix view of a step's tensor, shape `[stop - start, columns]`."""
        with self._lock:
            if step.name not in self._begun:
                self._begun[step.name] = _Begun(self._plan, step)
            begun = self._begun[step.name]
            self._begun.move_to_end(step.name)
            while len(self._begun) > 2 * default_threads() + 2:
                self._begun.popitem(last=False)
        columns = step.spec.matrix[1]
        parts = [
            begun.part(cut, check).reshape(-1, columns) for cut in begun.cuts if cut[0] < rows[1] and cut[1] > rows[0]
        ]
        if not parts:
            return torch.empty((rows[1] - rows[0], columns), dtype=torch_dtype(step.spec.dtype))
        first = max(cut[0] for cut in begun.cuts if cut[0] <= rows[0])
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[rows[0] - first : rows[1] - first].clone()


class _Begun:
    """A tensor of which some rows were asked for."""

    def __init__(self, plan: Plan, step: Step) -> None:
        self._task = task(plan, step)
        self._lock = threading.Lock()
        self._known: list[Any] = []  # what the method knows of the whole tensor, once it was needed
        self._last: tuple[tuple[int, int], Tensor] | None = None
        self.cuts = list(self._task.cuts())

    def part(self, cut: tuple[int, int], check: bool) -> Tensor:
        with self._lock, workshop() as one_thread:
            one_thread()
            if self._last is None or self._last[0] != cut:
                if not self._known:
                    self._known.append(self._task.whole())
                self._last = cut, self._task.rows(*cut, self._known[0], check)
            return self._last[1]


@contextmanager
def workshop() -> Iterator[Callable[[], None]]:
    """How torch and the allocator are set while pieces are worked on.

    Our threads share the cores; torch's own would only get in their way: who is going to use it calls what this yields. And
    glibc by default gives every buffer of a piece back to the system and asks for it anew, which costs more than the
    arithmetic: buffers are kept below 64 MB.
    """
    before: list[int] = []

    def one_thread() -> None:
        before.append(torch.get_num_threads())
        torch.set_num_threads(1)

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(_MMAP_THRESHOLD, 64 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)
    try:
        yield one_thread
    finally:
        if before:
            torch.set_num_threads(max(before))
