"""A parameter's setting: one value, a gradient over the layers, or a list of values filtered by tensor name.

    weight: 0.5                           a scalar: number, boolean or text
    weight: [0, 0.5, 1]                   a gradient, from the first layer to the last
    weight:                               conditions, tried in order; the first that fits the tensor's name decides
      - {filter: self_attn, value: 0.7}
      - {filter: "*.mlp.*", value: [0, 1]}
      - {value: 0.5}

A filter is a part of the tensor's name (`norm` also fits `input_layernorm`). Beyond what mergekit reads, one that
contains `*`, `?` or `[` is a glob over the whole name, and one written `/…/` is a regular expression, found anywhere in
it. No filter, or `*`, fits every tensor.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from plait.errors import PlaitError, RecipeError, Where, raise_all
from plait.recipe.document import place
from plait.types import compiled

Scalar = float | int | bool | str

_TRUE, _FALSE = {"true", "yes", "on", "y", "t", "1"}, {"false", "no", "off", "n", "f", "0"}
_WANTED = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


@dataclass(frozen=True, slots=True)
class Found:
    """A value for one tensor, and the place in the recipe that gave it."""

    value: Scalar
    where: Where | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A scalar or a gradient, for the tensors that `filter` fits; None fits all."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None
    where: Where | None = field(default=None, compare=False)

    @property
    def points(self) -> tuple[Scalar, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True, slots=True)
class Setting:
    """A parsed setting; `where` is the place of the parameter's key."""

    entries: tuple[Entry, ...]
    where: Where | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, raw: object, at: Where | None = None, where: Where | None = None) -> Setting:
        """Read the YAML value `raw`, which stands at `at` below the key at `where`; raises `PlaitError`."""
        conditional = [raw] if isinstance(raw, dict) else raw
        if isinstance(conditional, list) and any(isinstance(item, dict) for item in conditional):
            entries, problems = [], []
            for i, item in enumerate(conditional):
                try:
                    entries.append(_condition(item, (place(raw, i) if isinstance(raw, list) else None) or at))
                except PlaitError as error:
                    problems.append(error)
            raise_all(problems)
            return cls(tuple(entries), where)
        return cls((Entry(_value(raw, at), None, at),), where)

    def evaluate(self, name: str, t: float, kind: type) -> Found | None:
        """The value for the tensor `name` at the relative depth `t` in [0, 1] as a `kind`, None when no condition fits.

        `kind` is float, int, bool or str. A gradient of n numbers is interpolated linearly at t·(n−1) (an int is
        rounded to the nearest); one of booleans or texts is a step function that takes the element floor(t·(n−1)).
        Raises `RecipeError` when a value is not a `kind`.
        """
        for entry in self.entries:
            if fits(entry.filter)(name):
                return Found(_at([_coerced(point, kind, entry.where) for point in entry.points], t, kind), entry.where)
        return None

    def points(self) -> Iterator[tuple[Scalar, Where | None]]:
        """Every scalar in the setting with its place, in order."""
        for entry in self.entries:
            for point in entry.points:
                yield point, entry.where

    @property
    def total(self) -> bool:
        """Whether it has a value for every tensor."""
        return any(entry.filter in (None, "*") for entry in self.entries)

    def plain(self) -> Any:
        """The setting as YAML holds it."""
        values = [list(e.value) if isinstance(e.value, tuple) else e.value for e in self.entries]
        if len(self.entries) == 1 and self.entries[0].filter is None:
            return values[0]
        return [
            {"value": value} if entry.filter is None else {"filter": entry.filter, "value": value}
            for entry, value in zip(self.entries, values, strict=True)
        ]


def position(layer: int, count: int) -> float:
    """The relative depth in [0, 1] of layer `layer` of `count`: 0 for the first, 1 for the last and for an only one."""
    return layer / (count - 1) if count > 1 else 1.0


def coerce(value: object, kind: type) -> Scalar:
    """`value` as a float, int, bool or str: numeric text is a number, 0 and 1 are booleans, true is 1.0.

    Raises ValueError for anything else, NaN and infinity among it.
    """
    if kind is bool:
        if value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
            return value.strip().lower() in _TRUE
    elif kind is str:
        if isinstance(value, str):
            return value
    elif isinstance(value, int | float | str):
        number = _number(value)
        if kind is float:
            return number
        if number.is_integer():
            return value if type(value) is int else int(number)
    raise ValueError(value)


@lru_cache(maxsize=4096)
def fits(filter: str | None) -> Callable[[str], bool]:
    """The test that a filter makes of a tensor's name. Raises `re.error` for a regular expression that is none."""
    if filter in (None, "*"):
        return lambda name: True
    assert filter is not None
    if len(filter) > 2 and filter[0] == filter[-1] == "/":
        search = compiled(filter[1:-1]).search
        return lambda name: search(name) is not None
    if any(c in filter for c in "*?["):
        match = re.compile(fnmatch.translate(filter)).match
        return lambda name: match(name) is not None
    return lambda name: filter in name


def _number(value: int | float | str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(value) from None
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        raise ValueError(value)
    return number


def _at(points: Sequence[Scalar], t: float, kind: type) -> Scalar:
    s = t * (len(points) - 1)
    i = math.floor(s)
    if kind not in (float, int):
        return points[i]
    a, b = float(points[i]), float(points[min(i + 1, len(points) - 1)])
    value = a if a == b else (1 - (s - i)) * a + (s - i) * b
    return value if kind is float else round(value)


# a recipe has few values and a model many tensors; typed, because 1 == True
_coerce = lru_cache(maxsize=4096, typed=True)(coerce)


def _coerced(value: Scalar, kind: type, where: Where | None) -> Scalar:
    try:
        return _coerce(value, kind)
    except ValueError:
        do = (
            "quote it"
            if kind is str
            else "write it without quotes or other characters"
            if isinstance(value, str)
            else f"write {_WANTED[kind]}"
        )
        what = f"{value!r} is not {_WANTED[kind]}"
        raise RecipeError(what, wanted=_WANTED[kind], found=repr(value), do=do, where=where) from None


def _condition(item: object, at: Where | None) -> Entry:
    if not isinstance(item, dict):
        raise RecipeError(
            "plain values and conditions are mixed in one list",
            wanted="either a gradient like [0, 0.5, 1], or conditions like {filter: mlp, value: 0.5} only",
            found=repr(item),
            do="write {value: …} for the value that holds for all other tensors",
            where=at,
        )
    if "value" not in item:
        raise RecipeError("a condition has no 'value'", wanted="{filter: …, value: …}", do="add 'value:'", where=at)
    filter = item.get("filter")
    if filter is not None and not isinstance(filter, str):
        raise RecipeError("a filter is text", found=repr(filter), do="quote it", where=place(item, "filter") or at)
    try:
        fits(filter)
    except (re.error, RecursionError, OverflowError) as error:
        what = f"the filter {filter!r} is not a regular expression"
        raise RecipeError(
            what, found=str(error), do="mend it, or drop the slashes", where=place(item, "filter") or at
        ) from None
    where = place(item, "value") or at
    return Entry(_value(item["value"], where), filter, where)


def _value(raw: object, at: Where | None) -> Scalar | tuple[Scalar, ...]:
    if isinstance(raw, list):
        if not raw:
            raise RecipeError(
                "a gradient is empty", wanted="at least one value", found="[]", do="write a value", where=at
            )
        return tuple(_scalar(item, place(raw, i) or at) for i, item in enumerate(raw))
    return _scalar(raw, at)


def _scalar(raw: object, at: Where | None) -> Scalar:
    if isinstance(raw, bool | str):
        return raw
    if not isinstance(raw, int | float):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise RecipeError(
            "a setting's value is a number, true, false or text", found=found, do="write a value", where=at
        )
    try:
        _number(raw)
    except ValueError:
        raise RecipeError(
            "a setting's value is finite", found=str(raw)[:40], do="write a finite number", where=at
        ) from None
    return raw
