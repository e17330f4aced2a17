"""Pieces as they are stored, and what kernels make of them in one go (`fused.c`): no tensor, and no PyTorch, in between.

A `Raw` stands for some rows of one input. Bricks that know it (`ops/`) add stages to it, such as a cutoff, and at last merge
several into a `Merged`, which the runner rounds and writes. All counts are of entries.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass, field, replace
from mmap import mmap
from typing import Any

from plait.kernels import call

MOST = 16  # inputs of one tensor
WINDOW = 768 * 960  # bytes of all inputs that are read from files at once
STAGES = 3  # of one input
MEMO = 1 << 24  # bytes that are remembered of one input until its tensor is done
DRAWN = 1 << 23  # bytes of these that say which entries were drawn
KEEP, CUT, DROP, SCALE, MASK = range(5)
PRODUCTS, LENGTHS, SQUARES = range(3)
SUM, ELECT, AGREE = range(3)


class Stage(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("value", c_float),
        ("left", c_void_p),
        ("mask", c_void_p),
        *((name, c_uint32) for name in ("key1", "key2", "low", "_")),
        ("drawn", c_void_p),
    )


class _Source(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("offset", c_int64), ("file", c_int32), ("dtype", c_int32))


class _Input(ctypes.Structure):
    _fields_ = (("source", _Source), ("stages", c_int32), ("_", c_int32), ("stage", Stage * STAGES))


class _Group(ctypes.Structure):
    _fields_ = (
        ("base", _Source),
        ("inputs", POINTER(_Input)),
        ("left", c_void_p),
        ("count", c_int32),
        ("value", c_float),
        ("failed", c_int32),
        ("error", c_int32),
    )


class Bracket(ctypes.Structure):
    """Magnitudes with bits in [low, low + span), counted by (bits - low) >> shift, of one input (-1: of the variance)."""

    _fields_ = (
        ("above", c_int64),
        ("zeros", c_int64),
        ("counts", c_void_p),
        ("low", c_uint32),
        ("span", c_uint32),
        ("shift", c_int32),
        ("input", c_int32),
    )


#: by what it is of: the first entry of a piece, or how entries were drawn
Memo = dict[int | tuple[float, int, int], ctypes.Array[c_uint8]]


@dataclass(frozen=True, eq=False)
class Place:
    """Where the rows of a piece are: from an address in memory on, or in a file from an offset on."""

    dtype: int
    address: int = 0
    file: int = -1  # descriptor
    offset: int = 0
    alive: Any = field(default=None, repr=False)  # what the address points into
    #: the error to raise where the file cannot be read: of errno, or 0 where it ended
    failed: Callable[[int], Exception] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Span:
    """The rows of one tensor that a piece holds, and the base that is taken away from every input."""

    rows: int
    columns: int
    start: int  # number of the first entry
    total: int  # entries of the tensor
    base: Place | None = None

    @property
    def entries(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, eq=False)
class Raw:
    """Some rows of an input as they are stored, less the base, with the stages that are still to be done.

    Stages that count (`keep`, `cut`) count down over a whole pass through the tensor, so each must be worked out once for
    each piece, and pieces in order; `counters` holds the numbers, and is the pass's own.
    """

    place: Place
    span: Span
    counters: list[c_int64] = field(repr=False)
    memo: Memo = field(default_factory=dict, repr=False)  # of this input, from pass to pass
    stages: tuple[Stage, ...] = ()
    choice: Choice | None = None  # of entries, by all inputs that stand together
    alive: tuple[Any, ...] = field(default=(), repr=False)  # what the stages point into

    @property
    def shape(self) -> tuple[int, int]:
        return self.span.rows, self.span.columns

    def __mul__(self, factor: float) -> Raw:
        return self._then(Stage(kind=SCALE, value=factor))

    def keep(self, value: float, count: int) -> Raw:
        """With zeros but where the magnitude exceeds `value`, or is one of the first `count` of the tensor to equal it."""
        return self._count(KEEP, value, count)

    def cut(self, value: float, count: int) -> Raw:
        """With zeros where `keep` has none."""
        return self._count(CUT, value, count)

    def masked(self, mask: Any) -> Raw:
        """Times 1 or 0, uint8, one for each entry."""
        return self._then(Stage(kind=MASK, mask=ctypes.addressof(mask)), mask)

    def drop(self, density: float, keys: tuple[int, int], remember: bool = False) -> Raw:
        """With zeros but where the entry's random number is below `density`; `remember` which, as there is a pass to come."""
        which = density, *keys
        size = 64 * (1 + -(-self.span.total // 512))  # a bit for each entry, and a line before them
        if remember and which not in self.memo and size <= min(DRAWN, self.spare):
            self.memo[which] = (c_uint8 * size)()
        held = self.memo.get(which)
        drawn = ctypes.addressof(held) if held else None
        stage = Stage(kind=DROP, value=density, key1=keys[0], key2=keys[1], low=self.span.start, drawn=drawn)
        return self._then(stage, held)

    @property
    def spare(self) -> int:
        """Bytes that may still be remembered of this input."""
        return MEMO - sum(map(len, self.memo.values()))

    def chosen(self, choice: Choice) -> Raw:
        """With zeros but where the variance over the inputs is large enough; the same choice for each of them."""
        return replace(self, choice=choice)

    def _count(self, kind: int, value: float, count: int) -> Raw:
        left = counter(self, count)
        return self._then(Stage(kind=kind, value=value, left=ctypes.addressof(left)), left)

    def _then(self, stage: Stage, *alive: Any) -> Raw:
        assert len(self.stages) < STAGES, "a brick has more stages than the kernels know"
        return replace(self, stages=(*self.stages, stage), alive=(*self.alive, *alive))


def counter(raw: Raw, count: int) -> c_int64:
    """The next number of the pass that is counted down from `count`, which is set anew with the first piece."""
    which = sum(stage.kind in (KEEP, CUT) for stage in raw.stages)
    while len(raw.counters) <= which:
        raw.counters.append(c_int64(count))
    return raw.counters[which]


@dataclass(frozen=True, eq=False)
class Choice:
    """Entries are chosen by their variance over the inputs: as `Raw.keep` chooses by magnitude."""

    value: float
    left: c_int64


@dataclass(frozen=True, eq=False)
class Merged:
    """Inputs and how they are merged: SUM, ELECT (as TIES does), AGREE (as SCE does)."""

    inputs: Sequence[Raw]
    how: int
    weights: Sequence[float]
    normalize: bool = False
    scale: float = 1.0

    def write(self, out: int, dtype: int, add_base: bool) -> bool:
        """The result, plus the base if `add_base`, to the address `out`; whether all of it is finite."""
        weights = (c_float * len(self.weights))(*self.weights)
        n = self.inputs[0].span.entries
        return bool(_run("merge", self.inputs, self.how, weights, self.normalize, self.scale, add_base, out, dtype, n))


def sums(inputs: Sequence[Raw], kind: int, block: int) -> list[list[float]]:
    """For each block of entries the numbers that `kind` (PRODUCTS, LENGTHS or SQUARES) names, as `plait_sums` orders them."""
    k, n = len(inputs), inputs[0].span.entries
    width = (k * (k + 1) // 2, 2 * k, k)[kind]
    out = (c_double * (width * -(-n // block)))()
    _run("sums", inputs, kind, n, block, out)
    return [out[i : i + width] for i in range(0, len(out), width)]


def select(inputs: Sequence[Raw], brackets: ctypes.Array[Bracket]) -> None:
    """Count the entries into the brackets."""
    _run("select", inputs, brackets, len(brackets), inputs[0].span.entries)


def magnitudes(inputs: Sequence[Raw], apart: bool, out: int, stride: int) -> None:
    """The bits of the magnitudes of all inputs, uint32, to `out` and `stride` further each; or with `apart` of their variance."""
    _run("magnitudes", inputs, apart, inputs[0].span.entries, out, stride)


def count_bins(numbers: int, count: int, shift: int, bins: int, counts: int) -> None:
    """Count uint32 by number >> shift into the uint32 at `counts`, of which there are `bins`."""
    ctypes.memset(counts, 0, 4 * bins)
    call("count_bins", numbers, count, shift, counts)


def largest(numbers: int, count: int, k: int) -> tuple[int, int]:
    """(the k-th largest of `count` uint32 at this address, k from 1; how many are larger)."""
    above = c_int64()
    found = call("largest", numbers, count, k, buffer("largest", 4 << 16).address, ctypes.byref(above))
    return int(found), above.value


def locate(counts: int, bins: int, k: int) -> tuple[int, int]:
    """(the bin with the k-th largest entry, k from 1, or -1; how many entries lie in the bins above it)."""
    above = c_int64()
    return int(call("locate", counts, bins, k, ctypes.byref(above))), above.value


def at_least(numbers: int, parts: int, size: int, value: int) -> list[int]:
    """How many uint32 of each part, of `size` numbers, are at least `value`."""
    found = (c_int64 * parts)()
    call("parts", numbers, parts, size, value, found)
    return list(found)


def ranked(raw: Raw, low: float, wide: float, keys: tuple[int, int]) -> Raw:
    """With zeros but where the entry's random number is below low + wide * rank; see `plait_ranked`."""
    assert not raw.stages
    span = raw.span
    if span.start not in raw.memo:
        mask, spare = (c_uint8 * span.entries)(), buffer("rank", 32 * span.columns)
        _run("ranked", [raw], span.rows, span.columns, low, wide, *keys, span.start, spare.address, mask)
        if len(mask) > raw.spare:
            return raw.masked(mask)
        raw.memo[span.start] = mask
    return raw.masked(raw.memo[span.start])


def _run(name: str, inputs: Sequence[Raw], *arguments: object) -> int | float:
    """Call a kernel with a group; raises the error of an input that cannot be read."""
    base, choice = inputs[0].span.base, inputs[0].choice
    array = (_Input * len(inputs))()
    for i, raw in enumerate(inputs):
        own = array[i]
        own.source, own.stages = _source(raw.place, i), len(raw.stages)
        for s, stage in enumerate(raw.stages):
            own.stage[s] = stage
    group = _Group(inputs=array, count=len(inputs))
    group.base = _source(base, -1) if base else _NONE
    if choice:
        group.value, group.left = choice.value, ctypes.addressof(choice.left)
    result = call(name, ctypes.byref(group), *arguments)
    if result < 0:
        place = base if group.failed < 0 else inputs[group.failed].place
        assert place
        assert place.failed
        raise place.failed(group.error)
    return result


_NONE = _Source(dtype=-1, file=-1)


def _source(place: Place, number: int) -> _Source:
    address = place.address if place.file < 0 else buffer(f"window {number}", WINDOW).address
    return _Source(address, place.offset, place.file, place.dtype)


@dataclass(frozen=True)
class Buffer:
    """Memory that may be written to."""

    address: int
    view: memoryview = field(repr=False)


_kept = threading.local()


def buffer(name: str, nbytes: int) -> Buffer:
    """At least `nbytes` of this thread's own; asking for the same name gives the same memory again."""
    held: dict[str, Buffer] = _kept.__dict__.setdefault("held", {})
    if name not in held or len(held[name].view) < nbytes:
        block = mmap(-1, max(nbytes, 1))
        held[name] = within(block, 0, len(block))
    return held[name]


def within(memory: mmap, at: int, nbytes: int) -> Buffer:
    """A part of some memory."""
    return Buffer(ctypes.addressof(c_uint8.from_buffer(memory)) + at, memoryview(memory)[at : at + nbytes])


def view(address: int, nbytes: int) -> memoryview:
    """Memory as bytes."""
    return memoryview((c_uint8 * nbytes).from_address(address)).cast("B")


def equal(a: int, b: int, nbytes: int) -> bool:
    """Whether two stretches of memory hold the same bytes."""
    return bytes(view(a, nbytes)) == bytes(view(b, nbytes))


def release() -> None:
    """Give this thread's buffers back."""
    _kept.__dict__.clear()
