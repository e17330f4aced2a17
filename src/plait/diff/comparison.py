"""All tensors of several models, measured on a few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from plait.diff.measure import Measured, measure
from plait.diff.sides import Pairing, Side, open_sides, pair
from plait.diff.sums import Sums, add
from plait.errors import PlanError
from plait.run import Progress, default_threads, workshop
from plait.types import layer_order


@dataclass(frozen=True)
class Comparison:
    """What was measured. `sides[0]` is the model that the others are measured against; models are counted from 0 in `deltas`."""

    sides: tuple[Side, ...]
    pairing: Pairing
    tensors: tuple[Measured, ...]

    @cached_property
    def total(self) -> Sums:
        """All shared tensors that are finite."""
        return add(m.sums for m in self.tensors) or _nothing(len(self.sides) - 1)

    @cached_property
    def body(self) -> Sums | None:
        """The matrices of the layers: what unrelated models do not share, while norms are near 1 in all of them."""
        return add(m.sums for m in self.tensors if m.layer is not None and m.pair.columns > 1)

    @cached_property
    def kinds(self) -> dict[str, Sums]:
        """By kind of tensor, in the order of the model."""
        return self._by(lambda m: m.kind)

    @cached_property
    def cells(self) -> dict[tuple[str, int | None], dict[str, Sums]]:
        """(module, layer) -> kind -> sums; layer None for what is outside of the layers."""
        places = dict.fromkeys((m.module, m.layer) for m in self.tensors)
        ordered = sorted(places, key=lambda place: (place[1] is None, place[1] or 0))
        return {
            place: self._by(lambda m: m.kind, [m for m in self.tensors if (m.module, m.layer) == place])
            for place in ordered
        }

    @cached_property
    def layers(self) -> dict[tuple[str, int], Sums]:
        """(module, layer) -> all of its tensors together."""
        found = {
            (module, layer): add(kinds.values()) for (module, layer), kinds in self.cells.items() if layer is not None
        }
        return {place: sums for place, sums in found.items() if sums}

    @property
    def broken(self) -> tuple[str, ...]:
        """Tensors with NaN or infinity in one of the models; they are in no sum."""
        return tuple(m.pair.name for m in self.tensors if not m.sums.finite)

    def _by(self, key: Callable[[Measured], str], tensors: Sequence[Measured] | None = None) -> dict[str, Sums]:
        chosen = self.tensors if tensors is None else tensors
        groups: dict[str, list[Sums]] = {}
        for m in chosen:
            groups.setdefault(key(m), []).append(m.sums)
        return {name: sums for name, group in groups.items() if (sums := add(group))}


def compare(
    *models: str | os.PathLike[str] | Side,
    ranks: bool = True,
    threads: int | None = None,
    cache: str | None = None,
    progress: Callable[[int], Progress | None] | None = None,
) -> Comparison:
    """Compare models, or recipes (`.yml`: merges that need not be written), with the first of them.

    `ranks`: find the rank of deltas too; `threads`: one a core by default; `progress` is given the bytes to read and returns what
    is told the bytes read. Raises `ModelError` or what a recipe raises; `PlanError` if the models share no tensor.
    """
    sides = open_sides(models, cache)
    pairing = pair(sides)
    if not pairing.pairs:
        raise PlanError(
            "the models share no tensor",
            wanted="tensors with the same names and shapes, of floating numbers of 8 bits or more",
            found="; ".join(f"{side.name}: {_example(side)}" for side in sides),
            do="compare models of one architecture and size",
        )
    nbytes = sum(_nbytes(side, p.name) for p in pairing.pairs for side in sides)
    tell = progress(nbytes) if progress else None
    largest_first = sorted(pairing.pairs, key=lambda p: -p.rows * p.columns)
    with workshop() as one_thread, ThreadPoolExecutor(threads or default_threads(), "plait") as pool:
        one_thread()
        done = list(pool.map(lambda p: measure(sides, p, ranks, tell), largest_first))
    place = {p.name: i for i, p in enumerate(sorted(pairing.pairs, key=lambda p: layer_order(p.name)))}
    return Comparison(sides, pairing, tuple(sorted(done, key=lambda m: place[m.pair.name])))


def _nbytes(side: Side, name: str) -> int:
    return side.checkpoint.specs[name].nbytes


def _example(side: Side) -> str:
    specs = side.checkpoint.specs
    name = max(specs, key=lambda n: specs[n].numel, default=None)
    return f"{name} {specs[name]}" if name else "no tensor"


def _nothing(models: int) -> Sums:
    import numpy as np

    square = np.zeros((models, models))
    return Sums(0, np.zeros((models + 1, models + 1)), square, square, 0, 0, (0.0,) * models, (0,) * models)
