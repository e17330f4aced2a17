"""What a brick declares, and how bricks are put around a merge method.

A brick works on differences to the base: before the method on those of the models (`at="pre"`), after it on the merged one
(`at="post"`). It is one function in one file of `bricks/`, decorated with `@brick(Params, …)`:

    @brick(Params, at="post")
    def scale(piece: Piece, p: Params) -> Tensor:
        return piece.merged * p.factor

A `pre` brick returns a list with one tensor for each of `piece.models`; a `post` brick sees these as the method saw them, the
merged difference as `piece.merged`, and returns its replacement. `unit` and `first` mean what they mean for methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from plait.lazy import Tensor
from plait.method import Declared, Method, Survey, page_of, parameters_of
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece, Pieces

_UNITS = ("entry", "row", "matrix", "tensor")  # from the finest to the coarsest


@dataclass(frozen=True)
class Brick(Declared):
    """A step before or after any merge method (see the module's docstring)."""

    at: Literal["pre", "post"]


def brick(
    params: type,
    *,
    at: Literal["pre", "post"],
    unit: str | Callable[[Any], str] = "entry",
    first: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Brick]:
    """Make a `Brick` of a function; its name is the name in recipes, its module's docstring the documentation."""

    def make(function: Callable[..., Any]) -> Brick:
        return Brick(function.__name__, function, params, parameters_of(params), unit, first, page_of(function), at)

    return make


@dataclass(frozen=True)
class Woven:
    """The parameters of a method with bricks around it, and of each brick in order."""

    method: Any
    pre: tuple[Any, ...]
    post: tuple[Any, ...]


def around(method: Method, pre: Sequence[Brick], post: Sequence[Brick]) -> Method:
    """The method with bricks before and after it: a method in delta space, whose parameters are a `Woven`."""
    course = _Course(method, tuple(pre), tuple(post))
    return replace(
        method,
        name=" + ".join([*(b.name for b in pre), method.name, *(b.name for b in post)]),
        function=course.merge,
        params=Woven,
        parameters=(),
        space="delta",
        base="required",
        unit=course.unit,
        first=course.first,
        gives="entries",
        survey=course.survey,
        raw=False,
    )


@dataclass(frozen=True)
class _Course:
    """Bricks, a method, bricks; one after the other."""

    method: Method
    pre: tuple[Brick, ...]
    post: tuple[Brick, ...]

    def unit(self, p: Woven) -> str:
        """The coarsest unit that one of them wants."""
        parts = zip((self.method, *self.pre, *self.post), (p.method, *p.pre, *p.post), strict=True)
        return max((part.unit_of(params) for part, params in parts), key=_UNITS.index)

    @property
    def survey(self) -> Survey | None:
        """The method's, of what the bricks before it leave."""
        survey = self.method.survey
        return survey and Survey(lambda p: survey.key(p.method), survey.find, self._surveyed)

    def _surveyed(self, pieces: Pieces, p: Woven) -> Pieces:
        before = self._before(pieces, p)
        return _Changed(pieces, lambda piece: self._seen(self._prepared(piece, p, before), p))

    def _before(self, pieces: Pieces, p: Woven) -> list[Any]:
        """What the bricks before the method know: each is shown the pieces as those before it leave them."""
        before: list[Any] = []
        for brick, params in zip(self.pre, p.pre, strict=True):
            before.append(_first(brick, params, pieces, lambda piece: self._prepared(piece, p, before)))
        return before

    def first(self, pieces: Pieces, p: Woven) -> tuple[list[Any], Any, list[Any]]:
        before = self._before(pieces, p)
        middle = _first(self.method, p.method, pieces, lambda piece: self._seen(self._prepared(piece, p, before), p))
        if self.method.gives == "coefficients":
            middle = self.method(p.method, middle)
        after: list[Any] = []

        def merged(piece: Piece) -> Piece:
            return self._merged(self._prepared(piece, p, before), p, middle, after)

        for brick, params in zip(self.post, p.post, strict=True):
            after.append(_first(brick, params, pieces, merged))
        return before, middle, after

    def merge(self, piece: Piece, p: Woven) -> Tensor:
        before, middle, after = piece.whole
        merged = self._merged(self._prepared(piece, p, before), p, middle, after).merged
        assert merged is not None
        return merged.reshape(piece.models[0].shape)

    def _prepared(self, piece: Piece, p: Woven, known: Sequence[Any]) -> Piece:
        """The piece after as many of the first bricks as something is known for."""
        for brick, params, whole in zip(self.pre, p.pre, known, strict=False):
            seen = _as(piece, brick.unit_of(params))
            piece = replace(seen, models=brick(replace(seen, whole=whole), params))
        return piece

    def _seen(self, piece: Piece, p: Woven) -> Piece:
        """What the method itself wants to see: differences, or weights with the base among them."""
        seen = _as(piece, self.method.unit_of(p.method))
        if self.method.space == "delta":
            return seen
        assert seen.base is not None
        weights = [seen.base + delta for delta in seen.models]
        return replace(seen, models=weights if self.method.base == "ignored" else [seen.base, *weights])

    def _merged(self, piece: Piece, p: Woven, middle: Any, known: Sequence[Any]) -> Piece:
        """The piece with the merged difference, after as many of the last bricks as something is known for."""
        seen = self._seen(piece, p)
        if self.method.gives == "coefficients":
            merged = weighted_sum(seen.models, middle)
        else:
            merged = self.method(replace(seen, whole=middle), p.method)
        if self.method.space == "weight":
            assert seen.base is not None
            merged = merged - seen.base
        piece = replace(piece, merged=merged)
        for brick, params, whole in zip(self.post, p.post, known, strict=False):
            seen = _as(piece, brick.unit_of(params))
            piece = replace(seen, merged=brick(replace(seen, whole=whole), params))
        return piece


@dataclass(frozen=True)
class _Changed:
    """The pieces of a tensor, each changed before it is seen."""

    pieces: Pieces
    change: Callable[[Piece], Piece]

    @property
    def survey(self) -> Any:
        return self.pieces.survey

    @property
    def entries(self) -> int:
        return self.pieces.entries

    @property
    def raw(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Piece]:
        return map(self.change, self.pieces)

    def sample(self) -> list[tuple[int, int]]:
        return self.pieces.sample()

    def at(self, row: int, stop: int) -> Piece:
        return self.change(self.pieces.at(row, stop))


def _first(part: Declared, params: Any, pieces: Pieces, change: Callable[[Piece], Piece]) -> Any:
    if part.first is None:
        return None
    unit = part.unit_of(params)
    return part.first(_Changed(pieces, lambda piece: _as(change(piece), unit)), params)


def _as(piece: Piece, unit: str) -> Piece:
    """The same piece in the shape that a unit promises: rows of the matrix view, a vector as one row, or the tensor's own."""
    if unit == "tensor":
        shape: tuple[int, ...] = piece.shape
    elif unit == "row" and len(piece.shape) < 2:
        shape = (1, math.prod(piece.shape))
    else:
        shape = (-1, piece.shape[-1] if len(piece.shape) > 1 else 1)

    def seen(x: Tensor | None) -> Any:
        return None if x is None else x.reshape(shape)

    return replace(piece, models=[seen(x) for x in piece.models], base=seen(piece.base), merged=seen(piece.merged))
