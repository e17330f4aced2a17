"""The contract of a merge method, or of a brick, checked on real tensors.

    from plait.testing.methods import check

    def test_my_method():
        assert check(my_method) == []

A law is a function from a method to sentences about what is broken. `LAWS` holds them by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plait.brick import Brick, Woven, around
from plait.compute import merge_tensors
from plait.method import Method, Parameter, bind, method
from plait.ops.combine import weighted_sum
from plait.ops.pieces import Piece

Law = Callable[[Method], Iterator[str]]
Values = dict[str, Any]

#: name -> law, in the order in which they are checked
LAWS: dict[str, Law] = {}

SHAPES = ((), (1,), (0, 4), (4, 0), (7,), (5, 1), (33, 65), (3, 40, 50))
#: several blocks each: a matrix, a vector, rows longer than a block
LARGE = ((300, 517), (70_000,), (2, 70_001))
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: the law that methods may break by their nature
AVERAGE = "equal models give that model"
#: vectors whose sum torch shares out among its threads
LONG = ((40_001,), (70_000,), (90_000,))
EVERYTHING = 1 << 62


def check(method: Method | Brick, skip: Collection[str] = ()) -> list[str]:
    """What `method` breaks of its contract, one sentence each; nothing if it keeps it.

    Laws that it says it `breaks` must be broken: a method that does not average need not return the model when all models are
    equal. A brick is checked around a mean, and never promises that. `skip` names laws of `LAWS` that are not looked at.
    """
    broken: list[str] = []
    if isinstance(method, Brick):
        method, skip = alone(method), {*skip, AVERAGE}
    for name, law in LAWS.items():
        if name in skip:
            continue
        try:
            found = list(dict.fromkeys(law(method)))
        except Exception as error:  # whatever an author's code raises is what the author must see
            found = [f"{name}: {type(error).__name__}: {error}"]
        if name not in method.breaks:
            broken += found
        elif not found:
            broken.append(f"{name}: kept, although the method says that it breaks this law; take it out of `breaks`")
    return broken


@dataclass(frozen=True)
class _Nothing:
    """A mean has no parameters."""


@method(_Nothing, space="delta", base="required")
def mean(piece: Piece, _: _Nothing) -> Tensor:
    """The mean of the models."""
    return weighted_sum(piece.models, [1 / len(piece.models)] * len(piece.models))


def alone(brick: Brick) -> Method:
    """A mean with one brick around it, as a method that has the brick's parameters and page."""
    pre = brick.at == "pre"
    woven = around(mean, [brick] if pre else [], [] if pre else [brick])
    assert woven.first

    def given(p: Any) -> Woven:
        return Woven(_Nothing(), (p,) if pre else (), () if pre else (p,))

    return replace(
        woven,
        name=brick.name,
        function=lambda piece, p: woven(piece, given(p)),
        params=brick.params,
        parameters=brick.parameters,
        unit=lambda p: woven.unit_of(given(p)),
        first=lambda pieces, p: woven.first(pieces, given(p)),  # type: ignore[misc]
        doc=brick.doc,
    )


def settings(method: Method, models: int) -> Iterator[Values]:
    """Parameter values to try: the defaults, values inside of all bounds, and each switch and choice the other way."""
    defaults = {p.name: _value(p, models, inside=False) for p in method.parameters}
    inside = {p.name: _value(p, models, inside=True) for p in method.parameters}
    yield defaults
    if inside != defaults:
        yield inside
    for p in method.parameters:
        others: tuple[Any, ...] = (True, False) if p.kind is bool else p.choices
        yield from ({**inside, p.name: _each(p, other, models)} for other in others if other != p.default)


def extremes(method: Method, models: int) -> Iterator[Values]:
    """Each parameter at its bounds, or at 0, 1.7 and -0.4 if it has none; a method may refuse them, with a ValueError."""
    inside = {p.name: _value(p, models, inside=True) for p in method.parameters}
    for p in method.parameters:
        if p.kind in (float, int):
            ends = [end for end in (p.low, p.high) if end is not None] or [0.0, 1.7, -0.4]
            yield from ({**inside, p.name: _each(p, p.kind(end), models)} for end in ends)


def example(method: Method, shape: tuple[int, ...], models: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The base and so many models near it, the same at every call: no entry of a difference is nearer to 0 than 0.05."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    found = [base]
    for _ in range(models):
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        found.append(base + sign * (0.05 + torch.rand(shape, generator=generator)))
    return [x.to(dtype) for x in found]


def _law(function: Law) -> Law:
    LAWS[function.__name__.replace("_", " ")] = function
    return function


@_law
def documented(method: Method) -> Iterator[str]:
    if not method.summary.strip().endswith((".", ":")):
        yield "the docstring's first line must say in one sentence what the method does"
    if "http" not in method.reference:
        yield "the docstring must have a line `Reference:` with a link"
    for p in method.parameters:
        if len(p.doc.split()) < 3:
            yield f"{p.name}: say in one sentence what it means"


@_law
def bounded(method: Method) -> Iterator[str]:
    for name in method.breaks:
        if name not in LAWS:
            yield f"breaks={name!r} is no law; they are {', '.join(LAWS)}"
    if not (dataclasses.is_dataclass(method.params) and method.params.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        yield "the parameters must be a frozen dataclass"
    for p in method.parameters:
        if p.kind not in (float, int, bool, str):
            yield f"{p.name}: must be float, int, bool or str, or PerModel of one of them"
        if p.kind is str and not p.choices:
            yield f"{p.name}: text needs choices"
        low, high = (-math.inf if p.low is None else p.low), (math.inf if p.high is None else p.high)
        if not low < high:
            yield f"{p.name}: the lower bound {low:g} is not below the upper bound {high:g}"
        if p.required or p.default is None:
            continue
        typed = type(p.default) is p.kind
        if not typed:
            yield f"{p.name}: the default {p.default!r} is not of type {p.kind.__name__}"
        elif (p.choices and p.default not in p.choices) or (p.kind in (float, int) and not low <= p.default <= high):
            yield f"{p.name}: the default {p.default!r} is not among the allowed values"
    fewest, most = method.inputs
    if fewest < 0 or (most is not None and most < max(fewest, 1)):
        yield f"inputs {method.inputs}: wanted (fewest, most or None)"
    if fewest == 0 and method.base != "required":
        yield f"inputs {method.inputs}: a method that needs no model needs a base"


@_law
def shapes(method: Method) -> Iterator[str]:
    """Every shape is merged, to a finite tensor of its shape."""
    for models in _counts(method):
        for shape in SHAPES:
            base, *inputs = example(method, shape, models)
            for values in settings(method, models):
                merged = _merge(method, values, inputs, base)
                yield from _damage(merged, base, f"{models} models of shape {shape}", values)


@_law
def extreme_values(method: Method) -> Iterator[str]:
    """A value that the bounds allow is used, or refused with a ValueError before the work."""
    for shape in ((7,), (33, 65)):
        models = max(_counts(method))
        base, *inputs = example(method, shape, models)
        for values in extremes(method, models):
            merged = _merge(method, values, inputs, base, may_refuse=True)
            if merged is not None:
                yield from _damage(merged, base, f"shape {shape}", values)


@_law
def results_fit(method: Method) -> Iterator[str]:
    """The result has the dtype of the inputs; what the function returns has the pieces' shape and the computing dtype."""
    models = max(_counts(method))
    for dtype in DTYPES:
        base, *inputs = example(method, (33, 65), models, dtype)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        for values in settings(method, models):
            misfits: set[str] = set()

            def spy(*args: Any, wanted: torch.dtype = wanted, misfits: set[str] = misfits) -> Any:
                result = method.function(*args)
                if method.gives == "coefficients":
                    number = models + (method.space == "weight" and method.base != "ignored")
                    if len(result) != number:
                        raise ValueError(f"the function returned {len(result)} coefficients, wanted {number}")
                elif (result.shape, result.dtype) != (args[0].models[0].shape, wanted):
                    misfits.add(
                        f"{tuple(result.shape)} {result.dtype}, wanted {tuple(args[0].models[0].shape)} {wanted}"
                    )
                return result

            merged = _merge(dataclasses.replace(method, function=spy, raw=False), values, inputs, base)
            yield from _damage(merged, base, f"{dtype}", values)
            yield from (f"{_say(values)}: the function returned {misfit}" for misfit in misfits)


@_law
def deterministic(method: Method) -> Iterator[str]:
    """The result does not depend on the global random generator, nor does the method draw from it."""
    models = max(_counts(method))
    base, *inputs = example(method, (33, 65), models)
    for values in settings(method, models):
        results, draws = [], False
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                before = torch.get_rng_state()
                results.append(_merge(method, values, inputs, base))
                draws |= not torch.equal(before, torch.get_rng_state())
        if draws or not _same(*results):
            yield f"{_say(values)}: two runs may differ; draw random numbers from `piece.uniform`, not from torch's generator"


@_law
def inputs_untouched(method: Method) -> Iterator[str]:
    """Neither the inputs nor the pieces are changed in place."""
    models = max(_counts(method))
    for values in settings(method, models):
        base, *inputs = example(method, (33, 65), models)
        before = [x.clone() for x in (base, *inputs)]
        changed: list[bool] = []

        def spy(*args: Any, changed: list[bool] = changed) -> Any:
            pieces = [
                x for a in args if isinstance(a, Piece) for x in (*a.models, *([] if a.base is None else [a.base]))
            ]
            copies = [x.clone() for x in pieces]
            result = method.function(*args)
            changed.extend(not _same(x, y) for x, y in zip(pieces, copies, strict=True))
            return result

        _merge(dataclasses.replace(method, function=spy, raw=False), values, inputs, base)
        if any(changed) or not all(_same(x, y) for x, y in zip((base, *inputs), before, strict=True)):
            yield f"{_say(values)}: changes its inputs in place; they are lent"


@_law
def unit_is_true(method: Method) -> Iterator[str]:
    """Pieces of one block and the whole tensor at once give the same bits."""
    models = max(_counts(method))
    for shape in LARGE:
        base, *inputs = example(method, shape, models)
        for values in settings(method, models):
            whole = _merge(method, values, inputs, base, piece=EVERYTHING)
            parts = _merge(method, values, inputs, base, piece=1)
            if not _same(whole, parts):
                unit = method.unit_of(bind(method, values))
                yield (
                    f"{_say(values)}: shape {shape} in pieces differs from the whole; the unit {unit!r} is too small, or a "
                    "sum over the tensor does not use `plait.ops.pieces.total`"
                )


@_law
def threads_do_not_matter(method: Method) -> Iterator[str]:
    """With one of torch's threads and with three the result is the same to the last bit of float64."""
    models, before = max(_counts(method)), torch.get_num_threads()
    for shape in LONG:
        base, *inputs = (x * _scales(shape) for x in example(method, shape, models, torch.float64))
        for values in settings(method, models):
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                try:
                    results.append(_merge(method, values, inputs, base))
                finally:
                    torch.set_num_threads(before)
            if not _same(*results):
                yield f"{_say(values)}: torch's threads change the result; add up long rows with `plait.ops.pieces.row_sums`"


@_law
def equal_models_give_that_model(method: Method) -> Iterator[str]:
    """With default parameters and weights that sum to 1."""
    models = max(_counts(method))
    values = next(settings(method, models))
    if models < 2:
        return
    for shape in ((), (7,), (33, 65)):
        base, model, *_ = example(method, shape, models)
        merged = _merge(method, values, [model] * models, base)
        if _ulps(merged, model, base) > 4:
            yield (
                f"{models} equal models do not give that model (shape {shape}); if the method is a sum rather than an average, "
                f'declare breaks=("{AVERAGE}",)'
            )


@_law
def no_change_gives_no_change(method: Method) -> Iterator[str]:
    """Models that equal the base give the base: to the bit from deltas, to 2 units in the last place from weights."""
    if method.base == "ignored":
        return
    models = max(_counts(method))
    for shape in ((), (7,), (33, 65)):
        base, *_ = example(method, shape, 0)
        for values in settings(method, models):
            merged = _merge(method, values, [base] * models, base)
            if _ulps(merged, base, base) > (0 if method.space == "delta" else 2):
                yield f"{_say(values)}: models that equal the base do not give the base (shape {shape})"


@_law
def nothing_hides_nan(method: Method) -> Iterator[str]:
    """A NaN in a model is in the result, so that the merge stops."""
    models = max(_counts(method))
    for at in range(models):
        base, *inputs = example(method, (33, 65), models)
        inputs[at][3, 4] = math.nan
        for values in settings(method, models):
            if not _merge(method, values, inputs, base).isnan().any():
                yield f"{_say(values)}: a NaN in model {at + 1} is hidden; multiply by masks instead of choosing with `where`"


def _scales(shape: tuple[int, ...]) -> Tensor:
    """Powers of 10 from -6 to 6 at random, so that the order of a sum shows in its last bits."""
    generator = torch.Generator().manual_seed(1)
    return 10.0 ** torch.randint(-6, 7, shape, generator=generator).double()


def _counts(method: Method) -> list[int]:
    """Numbers of models to try: the fewest (but one), and three or the most."""
    fewest, most = method.inputs
    return sorted({max(fewest, 1), max(fewest, min(3, most or 3))})


def _value(p: Parameter, models: int, inside: bool) -> Any:
    """The default; or the middle of the bounds if there is no default, or it lies on a bound and `inside` is asked for."""
    low, high = p.low, p.high
    if not p.required and not (inside and p.kind is float and p.default in (low, high)):
        return _each(p, p.default, models)
    if p.kind is bool or p.choices:
        return _each(p, p.choices[0] if p.choices else False, models)
    if p.per_model and low is None and high is None:  # weights
        share = 1 / max(models, 1)
        return tuple(share + (0.1 * (i - 1) if inside else 0) for i in range(models))
    low, high = (0.0 if low is None else low), (1.0 if high is None else high)
    return _each(p, p.kind((low + max(high, low)) / 2), models)


def _each(p: Parameter, value: Any, models: int) -> Any:
    return (value,) * models if p.per_model else value


def _merge(
    method: Method,
    values: Values,
    inputs: list[Tensor],
    base: Tensor,
    piece: int = EVERYTHING,
    may_refuse: bool = False,
) -> Any:
    """The merged tensor, or None where the values may be refused and are."""
    try:
        params = bind(method, values)
        if method.gives == "coefficients" and method.first is None:
            method(params, None)
    except ValueError:
        if may_refuse:
            return None
        raise
    return merge_tensors(
        method, params, inputs, None if method.base == "ignored" else base, name="x", seed=1, piece=piece
    )


def _damage(merged: Tensor, like: Tensor, case: str, values: Values) -> Iterator[str]:
    if merged.shape != like.shape or merged.dtype != like.dtype:
        wanted, found = (f"{tuple(x.shape)} {x.dtype}" for x in (like, merged))
        yield f"{_say(values)}: {case} give {found}, wanted {wanted}"
    elif not merged.isfinite().all():
        yield f"{_say(values)}: {case} give values that are not finite"


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def _ulps(a: Tensor, b: Tensor, base: Tensor) -> float:
    """The largest difference, in units in the last place of the larger of wanted value and base."""
    scale = torch.maximum(b.abs(), base.abs()).clamp(min=1e-30)
    return float(((a - b).abs() / (scale * torch.finfo(a.dtype).eps)).max())


def _say(values: Values) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items()) or "without parameters"
