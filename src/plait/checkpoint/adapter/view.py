"""A base with a LoRA applied: W + scale * B A, block of rows by block of rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from plait.checkpoint import Checkpoint, Rows, held_nbytes, home, notes, stored_nbytes
from plait.checkpoint.adapter.bind import Change, LowRank, bind
from plait.checkpoint.adapter.files import Adapter
from plait.checkpoint.dtypes import torch_dtype
from plait.lazy import Tensor, torch
from plait.ops.pieces import block_rows
from plait.types import MERGEABLE, TensorSpec

BLOCK = 1 << 18  # entries that are worked on at once


class Adapted:
    """A `Checkpoint`: `base` with `adapter` applied.

    What the adapter changes is computed in float64, in blocks of rows whose size follows from the shape alone, and rounded
    once: to `dtype`, a safetensors code, in which then all weights are given; or by default to float32 (float64 where the
    base has that), whatever the base's dtype, so that small changes do not drown. `home` has the base's dtypes.

    Where the base ties its head to its embedding and the adapter changes only one of the two, the view has both, and its
    config unties them: this is the model that PEFT runs. Raises `ModelError` where adapter and base do not fit.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter, dtype: str | None = None) -> None:
        self._base, self._adapter, self._dtype = base, adapter, dtype
        self._changes, untied, rows = bind(adapter, base.specs, base.config)
        self.config: Mapping[str, Any] = {**base.config, **({"tie_word_embeddings": False} if untied else {})}
        self.resized = rows is not None
        if rows is not None:
            self.config = _with_rows(self.config, rows)
        told = f"the adapter changes {len(self._changes)} tensors"
        if untied:
            told += "; its base ties lm_head to the embedding, which it parts: the head is a tensor of its own"
        if rows is not None:
            told += f"; it was trained with {rows} tokens, and has an embedding of its own for them"
        self.notes = (*notes(base), told)
        self.home: dict[str, str] = {}
        specs, held = {name: self._plain(spec) for name, spec in base.specs.items()}, adapter.checkpoint.specs
        for name in base.specs:
            self.home[name] = specs[name].dtype if dtype else home(base, name)
        for name, change in self._changes.items():
            source = base.specs[str(change.source)]
            wide = "F64" if source.dtype == "F64" else "F32"
            whole = held[change.replaced].shape if change.replaced else source.shape
            specs[name] = TensorSpec(dtype or wide, whole)
            self.home[name] = dtype or home(base, str(change.source))
        self.specs: Mapping[str, TensorSpec] = specs
        self.stored = {name: stored_nbytes(base, name) for name in base.specs}
        self.held = {name: held_nbytes(base, name) for name in base.specs}
        for name, change in self._changes.items():
            factors = change.low and change.low.factors
            self.held[name] = self.held[str(change.source)] + 3 * 8 * BLOCK
            self.held[name] += 8 * sum(held[part].numel for part in (factors.a, factors.b)) if factors else 0
            first = held[change.replaced].nbytes if change.replaced else stored_nbytes(base, str(change.source))
            self.stored[name] = first + sum(held[part].nbytes for part in change.added())
        self._held = threading.local()  # one tensor's factors, for each thread
        self._packs = lru_cache(4)(adapter.read)  # of experts: every expert of a layer needs its part of the same two

    def _plain(self, spec: TensorSpec) -> TensorSpec:
        return TensorSpec(self._dtype, spec.shape) if self._dtype and spec.dtype in MERGEABLE else spec

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        spec, change = self.specs[name], self._changes.get(name)
        if change is None:
            return self._base.read(name, rows).to(torch_dtype(spec.dtype))
        count, columns = spec.matrix
        start, stop = rows or (0, count)
        made = torch.empty((stop - start, columns), dtype=torch_dtype(spec.dtype))
        if made.numel():
            self._fill(name, change, start, stop, made)
        return made if rows else made.reshape(spec.shape)

    def _fill(self, name: str, change: Change, start: int, stop: int, made: Tensor) -> None:
        for low, high in _blocks(self.specs[name], change, start, stop):
            x = self._changed(name, change, low, high)
            a, b = max(start, low), min(stop, high)
            made[a - start : b - start] = x[a - low : b - low]

    def _changed(self, name: str, change: Change, low: int, high: int) -> Tensor:
        """Rows [low, high) of the matrix view, whole blocks of outputs, in float64."""
        held = self._adapter.checkpoint
        if change.replaced:
            x = held.read(change.replaced, (low, high)).double()
        else:
            x = self._base.read(str(change.source), (low, high)).double()
        if change.low:
            left, right, stretch = self._factors(name, change)
            inner = _inner(self.specs[name], change.low)
            group, first = divmod(low // inner, left.shape[1])
            last = first + (high - low) // inner
            x = x.reshape(last - first, -1) + left[group, first:last].double() @ right[group]
            if stretch is not None:
                x *= stretch if change.low.turned else _stretch(stretch[first:last], x.norm(dim=1))[:, None]
            x = x.reshape(high - low, -1)
        if change.bias:
            x = x + change.bias[1] * held.read(change.bias[0], (low, high)).double()
        if change.rows:
            new = held.read(change.rows[0])
            for i, row in enumerate(change.rows[1]):
                if low <= row < high:
                    x[row - low] = new[i].double()
        return x

    def _factors(self, name: str, change: Change) -> tuple[Tensor, Tensor, Tensor | None]:
        """(left, right times scale, what DoRA needs), kept while a thread stays with one tensor.

        DoRA gives the weights of each output the length `magnitude`. Where outputs are rows, a row's length is known with the
        row, and the magnitudes are returned; where they are columns, the factors, for which every row must be seen once.
        """
        if getattr(self._held, "name", None) == name:
            return self._held.factors  # type: ignore[no-any-return]
        assert change.low
        factors = change.low.factors
        read = self._adapter.read if change.low.expert is None else self._packs
        left, right = _sides(change.low, *read(factors))
        right = right.double() * factors.scale
        stretch = None
        if factors.magnitude:
            stretch = self._adapter.checkpoint.read(factors.magnitude).reshape(-1).double()
        self._held.name, self._held.factors = name, (left, right, None if change.low.turned else stretch)
        if stretch is not None and change.low.turned:
            squares = torch.zeros_like(stretch)
            for low, high in _blocks(self.specs[name], change, 0, self.specs[name].matrix[0]):
                squares += self._changed(name, change, low, high).square().sum(0)
            self._held.factors = (left, right, _stretch(stretch, squares.sqrt()))
        return self._held.factors  # type: ignore[no-any-return]


def _with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config with this vocabulary size, where it has one."""
    return {
        key: _with_rows(value, rows) if key == "text_config" and isinstance(value, dict) else value
        for key, value in config.items()
    } | ({"vocab_size": rows} if "vocab_size" in config else {})


def _stretch(magnitude: Tensor, length: Tensor) -> Tensor:
    return magnitude / length


def _sides(low: LowRank, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """left `[groups, rows, rank]` and right `[groups, rank, columns]`, as the weight is stored."""
    if low.experts > 1:
        a = a.reshape(low.experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, low.experts).permute(2, 0, 1)
    else:
        a, b = a.flatten(1)[None], b.flatten(1)[None]
    if low.expert is not None:
        a, b = a[low.expert : low.expert + 1], b[low.expert : low.expert + 1]
    if low.rows:
        b = b[:, low.rows[0] : low.rows[1]]
    return (a.mT, b.mT) if low.turned else (b, a)


def _inner(spec: TensorSpec, low: LowRank) -> int:
    """Rows of the matrix view that one row of `left` makes: more than one for convolutions."""
    packed = low.experts > 1 and low.expert is None
    outputs = spec.shape[0] * (spec.shape[1] if packed else 1)
    return spec.matrix[0] // outputs


def _blocks(spec: TensorSpec, change: Change, start: int, stop: int) -> Iterator[Rows]:
    """The blocks that hold rows [start, stop) of the matrix view. Where they begin and end follows from the shape alone."""
    count, columns = spec.matrix
    inner, group = 1, count
    if change.low:
        inner = _inner(spec, change.low)
        group = count // (spec.shape[0] if change.low.experts > 1 and change.low.expert is None else 1)
    step = block_rows(columns * inner)
    step *= max(1, BLOCK // (step * columns * inner)) * inner
    row = start // group * group + start % group // step * step
    while row < stop:
        end = min(row + step, (row // group + 1) * group)
        yield row, end
        row = end
