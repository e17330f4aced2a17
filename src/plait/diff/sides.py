"""What is compared: models and recipes, opened, with the tensors that they share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from plait import arch, front
from plait.align import experts
from plait.align.spelling import spelt
from plait.arch import Architecture
from plait.checkpoint import Checkpoint
from plait.checkpoint.renamed import Renamed
from plait.checkpoint.source import fetched
from plait.errors import ModelError
from plait.types import DTYPES, ModelRef


@dataclass(frozen=True)
class Side:
    """One of the models: what the user called it, a short name for tables, its tensors, its folder if it has one."""

    called: str
    name: str
    checkpoint: Checkpoint = field(repr=False)
    arch: Architecture = field(repr=False)
    folder: Path | None
    notes: tuple[str, ...] = ()  # what was done to bring its tensors in line with the first side's


def open_sides(models: Sequence[str | os.PathLike[str] | Side], cache: str | None = None) -> tuple[Side, ...]:
    """Open models (headers only) and plan recipes (`.yml`, `.yaml`); raises what opening and planning raise."""
    called = [model.called if isinstance(model, Side) else os.fspath(model) for model in models]
    if len(called) < 2:
        raise ModelError(
            "there is nothing to compare it with",
            wanted="two models or more",
            found=str(len(called)),
            do="name another model or recipe",
        )
    names = short(called)
    first, *others = (
        model if isinstance(model, Side) else open_side(text, name, cache)
        for model, text, name in zip(models, called, names, strict=True)
    )
    return first, *(_in_line(side, first) for side in others)


def open_side(called: str, name: str, cache: str | None = None) -> Side:
    """One model, headers only, or one recipe, planned. `name`: what tables call it."""
    if called.lower().endswith((".yml", ".yaml")):
        merge = front.merge(called, cache=cache)
        donor = merge.plan.models[merge.plan.donor].opened.folder
        return Side(called, name, merge, arch.infer(merge.specs, merge.config), donor)
    model = front.inspect(ModelRef.parse(called), cache=cache)
    opened = fetched(model.opened, None, side_files=True)  # weights of the Hub come as they are read
    return Side(called, name, opened.checkpoint, model.arch, opened.folder)


def _in_line(side: Side, first: Side) -> Side:
    """The side with its experts laid out, and its tensors called, as the first one's are, as far as they have counterparts."""
    checkpoint, theirs, notes = side.checkpoint, first.checkpoint.specs, []
    if checkpoint.specs.keys() == theirs.keys():
        return side
    layout, other = experts.layout_of(checkpoint.specs), experts.layout_of(theirs)
    if layout and other and layout != other:
        checkpoint = experts.relaid(checkpoint, other)
        notes.append(f"the {layout} experts of {side.name} are read as {other}")
    spelling = spelt(checkpoint.specs, theirs, partly=True)
    if spelling.names:
        checkpoint = Renamed(checkpoint, spelling.names)
        notes += spelling.lines(side.name)
    if checkpoint is side.checkpoint:
        return side
    return replace(
        side, checkpoint=checkpoint, arch=arch.infer(checkpoint.specs, checkpoint.config), notes=tuple(notes)
    )


def short(called: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that tell them apart; a number where two are the same."""
    parts = [text.rstrip("/").split("/") for text in called]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{text} ({i})" for i, text in enumerate(called, 1)]


@dataclass(frozen=True)
class Pair:
    """One tensor that all sides have: how many of its rows are compared, and of what dtype each side has it."""

    name: str
    rows: int
    columns: int
    whole: bool  # False: the vocabularies differ in length, and the rows are the first that all have
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Pairing:
    """Which tensors can be compared; those that cannot, with what stands in the way."""

    pairs: tuple[Pair, ...]
    lacking: tuple[tuple[str, ...], ...]  # of each side: what another has and it does not
    shapes: dict[str, tuple[tuple[int, ...], ...]]  # name -> its shape on each side
    other: tuple[str, ...]  # not floating numbers


def pair(sides: Sequence[Side]) -> Pairing:
    """Pair tensors by name, in the first side's order."""
    specs = [side.checkpoint.specs for side in sides]
    everything = dict.fromkeys(name for each in specs for name in each)
    pairs: list[Pair] = []
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    other: list[str] = []
    for name in everything:
        if not all(name in each for each in specs):
            continue
        found = [each[name] for each in specs]
        known = tuple(spec.shape for spec in found)
        if not all(spec.floating and DTYPES[spec.dtype].bits >= 8 for spec in found):
            other.append(name)
        elif len(set(known)) == 1:
            pairs.append(Pair(name, *found[0].matrix, True, tuple(spec.dtype for spec in found)))
        elif len({shape[1:] for shape in known}) == 1 and {side.arch.vocab_axis(name) for side in sides} == {0}:
            rows = min(shape[0] for shape in known)
            pairs.append(Pair(name, rows, found[0].matrix[1], False, tuple(spec.dtype for spec in found)))
        else:
            shapes[name] = known
    lacking = tuple(tuple(name for name in everything if name not in each) for each in specs)
    return Pairing(tuple(pairs), lacking, shapes, tuple(other))
