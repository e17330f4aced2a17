"""What a recipe may say beyond mergekit's language: rules that choose a method by tensor, and bricks around a method.

    rules:
      - {when: {kind: norm}, merge_method: linear}
      - {when: {layer: 0-15, kind: [attention, mlp]}, parameters: {density: 0.3}}
      - {when: {name: /lm_head|embed/}, copy: base}
    otherwise: default
    post: [svc, lines: {alpha: 0.3, beta: 0.7}]

The first rule that fits a tensor decides. A file without these keys never notices them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from plait.arch.names import Kind
from plait.errors import PlaitError, RecipeError, Where, nearest, raise_all
from plait.recipe.damage import short
from plait.recipe.document import key_place, place
from plait.recipe.grammar import Reading, kind_of
from plait.recipe.setting import Setting, fits
from plait.types import ModelRef

KINDS: tuple[str, ...] = get_args(Kind)
_MENDS = {"filter": "name", "layers": "layer", "layer_range": "layer", "kinds": "kind", "type": "kind"}
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


@dataclass(frozen=True)
class When:
    """Which output tensors a rule is for: all of what is given must hold.

    `name` is a filter as parameters have it; `layers` are [first, last] pairs, both included, of output layers.
    """

    name: str | None = None
    layers: tuple[tuple[int, int], ...] = ()
    kinds: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def fits(self, name: str, layer: int | None, kind: str, module: str) -> bool:
        if self.kinds and kind not in self.kinds:
            return False
        if self.layers and (layer is None or not any(low <= layer <= high for low, high in self.layers)):
            return False
        if self.modules and module not in self.modules:
            return False
        return self.name is None or fits(self.name)(name)

    def __str__(self) -> str:
        layers = ", ".join(f"{low}-{high}" if low < high else str(low) for low, high in self.layers)
        parts = {"name": self.name, "layer": layers, "kind": ", ".join(self.kinds), "module": ", ".join(self.modules)}
        return ", ".join(f"{key} {value}" for key, value in parts.items() if value) or "every tensor"


@dataclass(frozen=True)
class BrickUse:
    """A brick that a recipe puts before or after its method, by name, with its parameters."""

    name: str
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    where: Where | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Rule:
    """What holds for the tensors that `when` fits; None and nothing mean: as the recipe has it elsewhere.

    `copy` is "base" or a model of the recipe: its tensor is taken as it is.
    """

    when: When
    method: str | None = None
    copy: ModelRef | str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    pre: tuple[BrickUse, ...] | None = None
    post: tuple[BrickUse, ...] | None = None
    where: Where | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Otherwise:
    """What happens to tensors that no rule fits: "default" (the recipe's own method), "copy" (of `model`), "error"."""

    do: str = "default"
    model: ModelRef | str | None = None
    where: Where | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.do if self.model is None else f"{self.do} {self.model}"


DEFAULT = Otherwise()


def read_when(value: object, ignored: list[RecipeError]) -> When:
    """The `when:` of a rule; raises `RecipeError`s."""
    if not isinstance(value, dict):
        do = "write {name: …}, {layer: 0-15}, {kind: norm}, {module: …}, or several of them"
        raise RecipeError("'when' is a mapping", found=kind_of(value), do=do)
    readers: dict[str, Callable[[object], Any]] = {"name": _name, "layer": _layers, "kind": _kinds, "module": _words}
    reading, found = Reading(ignored=ignored), {}
    for key, raw in value.items():
        if key not in readers:
            near = _MENDS.get(key) or nearest(key, readers)
            what = f"{short(key)} is not a key of a rule's 'when'"
            do = f"write {near!r}" if near else "write one of them"
            reading.refuse(RecipeError(what, wanted=", ".join(readers), do=do), key_place(value, key))
            continue
        try:
            found[key] = readers[key](raw)
        except PlaitError as error:
            reading.refuse(error, place(value, key))
    if not value:
        reading.refuse(
            RecipeError("'when' says nothing", found="{}", do="write name, layer, kind or module, or use 'otherwise:'")
        )
    raise_all(reading.problems)
    return When(found.get("name"), found.get("layer", ()), found.get("kind", ()), found.get("module", ()))


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError("a name is text: part of it, a glob, or /regex/", found=kind_of(value), do="quote it")
    try:
        fits(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise RecipeError(f"{value!r} is not a regular expression", found=str(error), do="mend it") from None
    return value


def _layers(value: object) -> tuple[tuple[int, int], ...]:
    found = []
    for item in value if isinstance(value, list) else [value]:
        match = _RANGE.fullmatch(str(item).strip()) if isinstance(item, int | str) and item is not True else None
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            wanted = "layer numbers of the output: 3, 0-15 (both ends included), or a list of these"
            raise RecipeError(
                "the layers of a rule cannot be read", wanted=wanted, found=kind_of(item), do="write 0-15"
            )
        found.append((low, high))
    if not found:
        raise RecipeError("the layers of a rule are an empty list", found="[]", do="write 0-15, say")
    return tuple(found)


def _kinds(value: object) -> tuple[str, ...]:
    for word in (words := _words(value)):
        if word not in KINDS:
            near = nearest(word, KINDS)
            do = f"write {near}" if near else "write one of them"
            raise RecipeError(f"there is no kind of tensor {word!r}", wanted=", ".join(KINDS), found=word, do=do)
    return words


def _words(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(word, str) and word for word in words):
        raise RecipeError("that is not a word or a list of words", found=kind_of(value), do="write one, or [one, two]")
    return tuple(words)


def read_bricks(value: object, _: object) -> tuple[BrickUse, ...] | None:
    """`pre:` or `post:`: a name, a mapping name -> parameters, or a list of these, in the order in which they are applied."""
    if value is None:
        return None
    uses: list[BrickUse] = []
    problems: list[PlaitError] = []
    items = value if isinstance(value, list) else [value]
    for i, item in enumerate(items):
        at = (place(value, i) if isinstance(value, list) else None) or place(item)
        if isinstance(item, str):
            uses.append(BrickUse(item, {}, at))
            continue
        if not isinstance(item, dict) or not item:
            do = "write trim, or trim: {density: 0.3}"
            problems.append(
                RecipeError("a brick is a name, with or without parameters", found=kind_of(item), do=do, where=at)
            )
            continue
        for name, raw in item.items():
            where = key_place(item, name) or at
            if raw is not None and not isinstance(raw, dict):
                do = f"write {name}: {{PARAMETER: VALUE}}"
                problems.append(
                    RecipeError(f"the parameters of {name} are a mapping", found=kind_of(raw), do=do, where=where)
                )
                continue
            settings = {}
            for parameter, given in (raw or {}).items():
                try:
                    settings[parameter] = Setting.parse(given, place(raw, parameter), key_place(raw, parameter))
                except PlaitError as error:
                    problems.append(error)
            uses.append(BrickUse(name, settings, where))
    raise_all(problems)
    return tuple(uses)


def read_otherwise(value: object, _: object) -> Otherwise | None:
    """`otherwise:`: "default", "error", "copy base" or "copy MODEL"."""
    if value is None or (isinstance(value, str) and value in ("default", "error")):
        return None if value is None else Otherwise(str(value))
    if isinstance(value, str) and value.startswith("copy "):
        return Otherwise("copy", read_copy(value.removeprefix("copy "), None))
    wanted = "default (the recipe's own method), copy base, copy MODEL, or error"
    raise RecipeError("'otherwise' cannot be read", wanted=wanted, found=kind_of(value), do="write one of these")


def read_copy(value: object, _: object) -> ModelRef | str | None:
    """`copy:` of a rule: "base" or a model as it stands in the recipe."""
    if value is None or value == "base":
        return value if isinstance(value, str) else None
    if isinstance(value, str):
        return ModelRef.parse(value)
    wanted, do = "base, or a model of the recipe", "write 'copy: base' or 'copy: MODEL'"
    raise RecipeError("a rule copies from one model", wanted=wanted, found=kind_of(value), do=do)
