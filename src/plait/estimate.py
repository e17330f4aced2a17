"""What a plan will cost, told before the work: bytes, memory, seconds of computing measured on a sample."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass

from plait.checkpoint import held_nbytes
from plait.checkpoint.dtypes import torch_dtype
from plait.compute import PIECE, Copy, Task, merge_tensors
from plait.lazy import torch
from plait.matrices import is_matrix
from plait.ops.pieces import block_rows
from plait.plan import Plan, Step
from plait.run import default_threads, task
from plait.types import DTYPES

WORKSPACE = 6  # float32 buffers of a piece that a method may hold besides its inputs


@dataclass(frozen=True)
class Estimate:
    """Bytes read and written, peak bytes of working memory over all threads, seconds of computing on them."""

    read_nbytes: int
    write_nbytes: int
    memory: int
    seconds: float
    threads: int


def memory(plan: Plan, threads: int) -> int:
    """Bytes of working memory at the peak, above what the process holds before the work."""
    return threads * max((_working_set(plan, step) for step in plan.steps), default=0)


def estimate(plan: Plan, threads: int | None = None) -> Estimate:
    """All figures; takes some milliseconds for each kind of step, since it runs a sample of each."""
    threads = threads or default_threads()
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
    return Estimate(plan.read_nbytes, plan.nbytes, memory(plan, threads), seconds / threads, threads)


def _working_set(plan: Plan, step: Step) -> int:
    views = [(plan.models[source.model].opened.checkpoint, source.name) for source in step.sources()]
    return sum(held_nbytes(*view) for view in views) + _pieces(plan, step)


def _pieces(plan: Plan, step: Step) -> int:
    made = task(plan, step)
    columns = step.spec.matrix[1]
    inputs = [DTYPES[plan.spec_of(source).dtype].bits // 8 for source in step.sources()]
    if isinstance(made, Copy):
        return min(step.spec.numel, max(PIECE, columns)) * sum(inputs)
    start, stop = max(made.cuts(), key=lambda cut: cut[1] - cut[0], default=(0, 0))
    wide = 8 if made.double else 4
    if _whole(step):  # decompositions work in float64, on copies
        return (stop - start) * columns * (sum(inputs) + wide * len(inputs) + 8 * (3 * len(inputs) + WORKSPACE))
    return (stop - start) * columns * (sum(inputs) + wide * (len(inputs) + WORKSPACE))


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
    made = task(plan, step)
    assert isinstance(made, Task)
    rows, columns = step.spec.matrix
    if _cubic(step):  # a smaller matrix of the same proportions
        shrink = min(1.0, math.sqrt(PIECE / math.prod(step.spec.shape[-2:])))
        rows, columns = (max(2, math.ceil(side * shrink)) for side in step.spec.shape[-2:])
    else:
        rows = min(rows, block_rows(columns) * math.ceil(PIECE / max(1, block_rows(columns) * columns)))
    noise = torch.Generator().manual_seed(0)
    sample = [(torch.randn(rows, columns, generator=noise) * 0.02).to(torch_dtype(code)) for code in codes]
    base, models = (sample[0], sample[1:]) if made.base else (None, sample)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = math.inf
        for _ in range(2):
            begun = time.thread_time()  # others may use the cores meanwhile
            merge_tensors(made.method, made.params, models, base, name=step.name, dtype=torch_dtype(made.dtype))
            best = min(best, time.thread_time() - begun)
    finally:
        torch.set_num_threads(before)
    return best, (rows, columns)
