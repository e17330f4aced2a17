"""Run a plan: every step, on a few threads, into whatever takes the pieces.

Threads take whole steps; while one waits for the disk, another computes. Which thread does what changes no bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from plait.checkpoint.dtypes import torch_dtype
from plait.compute import Copy, Reader, Task
from plait.lazy import Tensor, torch
from plait.plan import Input, Plan, Step

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)

#: takes rows of an output tensor: (tensor's name, first row, piece)
Sink = Callable[[str, int, Tensor], None]
#: is told the bytes of output that were done since the last call
Progress = Callable[[int], None]


def default_threads() -> int:
    """One thread a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def task(plan: Plan, step: Step) -> Task | Copy:
    """What computes one step."""
    called = [f"{source.name} of {plan.models[source.model].ref}" for source in step.sources()]
    if step.method is None:
        readers = [_reader(plan, i) for i in step.inputs]
        return Copy(step.name, step.spec.shape, readers, called, torch_dtype(step.spec.dtype))
    codes = {plan.spec_of(source).dtype for source in step.sources()} | {step.spec.dtype}
    return Task(
        name=step.name,
        shape=step.spec.shape,
        dtype=torch_dtype(step.spec.dtype),
        method=step.method,
        params=step.params,
        models=[_reader(plan, i) for i in step.inputs],
        base=_reader(plan, step.base) if step.base else None,
        seed=plan.seed,
        double="F64" in codes,
        sources=called,
    )


def _reader(plan: Plan, source: Input) -> Reader:
    read, limit = plan.models[source.model].opened.checkpoint.read, source.rows
    if limit is None:
        return lambda rows: read(source.name, rows)
    return lambda rows: read(source.name, rows or (0, limit))


def run(
    plan: Plan,
    sink: Sink,
    *,
    threads: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> None:
    """Compute every tensor of the plan and hand its pieces to `sink`, which must be thread-safe.

    `check`: stop at values that are not finite. The first error stops the rest and is raised.
    """
    stop = threading.Event()

    def work(step: Step) -> None:
        for row, piece in task(plan, step).run(check):
            if stop.is_set():
                return
            sink(step.name, row, piece)
            if progress:
                progress(piece.numel() * piece.element_size())

    with _workshop(), ThreadPoolExecutor(threads or default_threads(), "plait") as pool:
        futures = [pool.submit(work, step) for step in plan.steps]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for future in futures:
                future.cancel()
        for future in futures:
            if future.done() and not future.cancelled():
                future.result()


def tensors(plan: Plan, check: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every output tensor, whole, one after the other in the plan's order."""
    for step in plan.steps:
        yield step.name, tensor(plan, step, None, check)


def tensor(plan: Plan, step: Step, rows: tuple[int, int] | None = None, check: bool = True) -> Tensor:
    """One output tensor, or some rows of its matrix view; reads no more than these need."""
    with _workshop():
        made = task(plan, step)
        if rows is None:
            parts = [piece.reshape(-1) for _, piece in made.run(check)]
            empty = torch.empty(0, dtype=torch_dtype(step.spec.dtype))
            return torch.cat(parts or [empty]).reshape(step.spec.shape)
        whole, cuts = made.whole(), list(made.cuts())
        columns = step.spec.matrix[1]
        parts = []
        for start, stop in cuts:
            low, high = max(start, rows[0]), min(stop, rows[1])
            if low < high:
                piece = made.rows(start, stop, whole, check).reshape(-1, columns)
                parts.append(piece[low - start : high - start])
        nothing = torch.empty((rows[1] - rows[0], columns), dtype=torch_dtype(step.spec.dtype))
        return torch.cat(parts) if parts else nothing


@contextmanager
def _workshop() -> Iterator[None]:
    """How torch and the allocator are set while pieces are worked on.

    Our threads share the cores; torch's own would only get in their way. And glibc by default gives every buffer of a piece
    back to the system and asks for it anew, which costs more than the arithmetic: buffers are kept below 64 MB.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(_MMAP_THRESHOLD, 64 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)
    try:
        yield
    finally:
        torch.set_num_threads(before)
