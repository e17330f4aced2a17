"""The contract of a checkpoint: whatever claims to be one can be checked here, on its own tensors.

    from plait.testing.checkpoints import check

    def test_my_checkpoint():
        assert check(MyCheckpoint(...)) == []

A law is a function from a checkpoint to sentences about what is broken. `LAWS` holds them by name. All tensors are read
several times, so give it a small one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from plait.checkpoint import Checkpoint, Rows
from plait.checkpoint.dtypes import torch_dtype
from plait.types import DTYPES, TensorSpec

Law = Callable[[Checkpoint], Iterator[str]]

#: name -> law, in the order in which they are checked
LAWS: dict[str, Law] = {}

FEW = 6  # rows up to which every cut is tried


def check(checkpoint: Checkpoint, skip: Collection[str] = ()) -> list[str]:
    """What `checkpoint` breaks of its contract, one sentence each; nothing if it keeps it. `skip` names laws of `LAWS`."""
    broken: list[str] = []
    for name, law in LAWS.items():
        if name not in skip:
            try:
                broken += law(checkpoint)
            except Exception as error:  # whatever an author's code raises is what the author must see
                broken.append(f"{name}: {type(error).__name__}: {error}")
    return broken


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and the same bytes (NaN is NaN, 0 is not -0)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def _law(function: Law) -> Law:
    LAWS[function.__name__.replace("_", " ")] = function
    return function


@_law
def described(checkpoint: Checkpoint) -> Iterator[str]:
    if not isinstance(checkpoint, Checkpoint):
        yield "a checkpoint has config, specs and read"
        return
    if not isinstance(checkpoint.config, Mapping):
        yield "config must be a mapping"
    json.dumps(dict(checkpoint.config))
    for name, spec in checkpoint.specs.items():
        if not isinstance(spec, TensorSpec) or spec.dtype not in DTYPES:
            yield f"{name}: a spec has a dtype out of {', '.join(DTYPES)}"
        elif not isinstance(spec.shape, tuple) or any(type(n) is not int or n < 0 for n in spec.shape):
            yield f"{name}: a shape is a tuple of whole numbers from 0"


@_law
def reading_changes_nothing(checkpoint: Checkpoint) -> Iterator[str]:
    specs, config, threads = dict(checkpoint.specs), json.dumps(dict(checkpoint.config)), torch.get_num_threads()
    for name, spec in specs.items():
        before = checkpoint.read(name).clone()
        for rows in (None, (0, spec.matrix[0])):
            _bytes(checkpoint.read(name, rows)).fill_(0x55)  # what is read belongs to the reader
            if not same(checkpoint.read(name), before):
                yield f"{name}: it has changed after a reader wrote into what it had read"
                break
    if list(checkpoint.specs.items()) != list(specs.items()) or json.dumps(dict(checkpoint.config)) != config:
        yield "reading changed specs or config"
    if torch.get_num_threads() != threads:
        yield "reading changed torch's number of threads"


@_law
def read_as_described(checkpoint: Checkpoint) -> Iterator[str]:
    for name, spec in checkpoint.specs.items():
        x = checkpoint.read(name)
        if tuple(x.shape) != spec.shape or x.dtype != torch_dtype(spec.dtype):
            yield f"{name}: the spec says {spec}, the tensor is {x.dtype} {list(x.shape)}"
        if x.device.type != "cpu" or not x.is_contiguous() or x.requires_grad:
            yield f"{name}: a tensor is on the CPU, contiguous, without a gradient"


@_law
def rows_are_the_whole_s(checkpoint: Checkpoint) -> Iterator[str]:
    for name, spec in checkpoint.specs.items():
        count, columns = spec.matrix
        matrix = checkpoint.read(name).reshape(count, columns)
        for start, stop in cuts(count):
            rows = checkpoint.read(name, (start, stop))
            if not same(rows, matrix[start:stop]):
                yield f"{name}: rows {start} to {stop} are not those of the whole ({rows.dtype} {list(rows.shape)})"


def cuts(count: int) -> Iterator[Rows]:
    """Cuts of so many rows that tell: all of a few, else the ends, the empty ones and some inside."""
    marks = (*range(count + 1),) if count <= FEW else (0, 1, count // 3, count // 2 + 1, count - 1, count)
    return itertools.combinations_with_replacement(marks, 2)


@_law
def threads_share_it(checkpoint: Checkpoint) -> Iterator[str]:
    names, before = list(checkpoint.specs), torch.get_num_threads()
    alone = {name: checkpoint.read(name) for name in names}
    # more threads than cores, each name by each of them, in different orders
    orders = [names[i % max(1, len(names)) :] + names[: i % max(1, len(names))] for i in range(8)]
    with ThreadPoolExecutor(len(orders)) as pool:
        found = list(pool.map(lambda order: [(n, checkpoint.read(n)) for n in order], orders))
    wrong = {name for reads in found for name, x in reads if not same(x, alone[name])}
    yield from (f"{name}: threads that read at the same time get different bytes" for name in sorted(wrong))
    if torch.get_num_threads() != before:
        yield "reading on several threads changed torch's number of threads"
