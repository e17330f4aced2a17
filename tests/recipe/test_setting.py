"""Settings: parsing, filters, gradients, coercion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import PlaitError, RecipeError
from plait.recipe.setting import Setting, coerce, fits, position

NAME = "model.layers.3.self_attn.q_proj.weight"
numbers = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)


def value(raw: object, name: str = NAME, t: float = 0.0, kind: type = float) -> object:
    found = Setting.parse(raw).evaluate(name, t, kind)
    return None if found is None else found.value


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=9), st.floats(0, 1))
def test_gradient_interpolates(points: list[float], t: float) -> None:
    """A gradient of numbers is the piecewise linear curve through evenly spaced points."""
    expected = np.interp(t * (len(points) - 1), range(len(points)), points)
    assert value(points, t=t) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=9))
def test_gradient_meets_its_points(points: list[float]) -> None:
    """At the position of a point a gradient has exactly that point's value."""
    for i in range(len(points)):
        t = i / (len(points) - 1) if len(points) > 1 else 0.0
        s = t * (len(points) - 1)
        if s == i:
            assert value(points, t=t) == float(points[i])


@pytest.mark.parametrize(("kind", "points"), [(bool, [False, True, True]), (str, ["a", "b", "c"])])
def test_steps(kind: type, points: list[object]) -> None:
    """A gradient of booleans or texts is a step function that reaches its last element only at the last layer."""
    assert [value(points, t=t, kind=kind) for t in (0, 0.49, 0.5, 0.99, 1)] == [points[i] for i in (0, 0, 1, 1, 2)]


def test_bools_are_numbers_for_a_number() -> None:
    """A gradient of booleans given to a parameter that is a number is interpolated: it is coerced first."""
    assert value([True, False], t=0.25) == 0.75
    assert value([0, 1], t=0.75, kind=bool) is False


def test_int_gradient_stays_whole() -> None:
    """A whole-number parameter gets whole numbers from a gradient."""
    assert value([1, 4], t=0.5, kind=int) in (2, 3)
    assert type(value([1, 4], t=0.4, kind=int)) is int


def test_first_condition_that_fits_decides() -> None:
    """Conditions are tried in order, and where none fits there is no value."""
    raw = [{"filter": "q_proj", "value": 1}, {"filter": "self_attn", "value": [2, 4]}, {"filter": "mlp", "value": 3}]
    assert value(raw) == 1
    assert value(raw, "a.self_attn.k_proj", t=0.5) == 3
    assert value(raw, "a.norm") is None
    assert value([*raw, {"value": 9}], "a.norm") == 9
    assert value({"filter": "mlp", "value": 0.0}, "mlp.x") == 0


@pytest.mark.parametrize(
    ("filter", "yes", "no"),
    [
        (None, "x", None),
        ("*", "anything.at.all", None),
        ("norm", "layers.1.input_layernorm.weight", "layers.1.mlp"),
        ("layers.1", "layers.17.mlp", "layers.2.mlp"),
        ("a.b", "xa.bx", "xaxbx"),
        ("*.mlp.*", "layers.1.mlp.up", "mlp.up"),
        ("layers.[01].*", "layers.1.mlp", "layers.10.mlp"),
        ("layer?", "layer1", "my.layer1"),
        ("/layers\\.[0-3]\\./", "model.layers.2.mlp", "model.layers.22.mlp"),
        ("/", "a/b", "ab"),
    ],
)
def test_filters(filter: str | None, yes: str, no: str | None) -> None:
    """A filter is part of the name, a glob over all of it, or a regular expression found in it."""
    assert fits(filter)(yes)
    assert no is None or not fits(filter)(no)


@pytest.mark.parametrize(
    ("raw", "kind", "expected"),
    [
        ("1e-1", float, 0.1),
        (" 2 ", float, 2.0),
        (True, float, 1.0),
        (3, float, 3.0),
        ("10", int, 10),
        (10.0, int, 10),
        (1, bool, True),
        (0.0, bool, False),
        ("yes", bool, True),
        ("off", bool, False),
        ("x", str, "x"),
    ],
)
def test_coerce(raw: object, kind: type, expected: object) -> None:
    """Numeric text is a number, 0 and 1 are booleans, true is 1.0; the result has the kind asked for."""
    assert coerce(raw, kind) == expected
    assert type(coerce(raw, kind)) is kind


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ("lots", float),
        ("nan", float),
        ("1_0", float),
        (10**400, float),
        (1.5, int),
        (2, bool),
        ("maybe", bool),
        (1, str),
    ],
)
def test_coerce_refuses(raw: object, kind: type) -> None:
    """What is not of the kind is refused, never guessed."""
    with pytest.raises(ValueError):  # noqa: PT011
        coerce(raw, kind)
    with pytest.raises(RecipeError):
        Setting.parse(raw).evaluate(NAME, 0.0, kind)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([0.5, {"value": 1}], "mixed"),
        ([], "empty"),
        ({"filter": "mlp"}, "no 'value'"),
        ({"value": 1, "filter": 7}, "filter is text"),
        ({"value": 1, "filter": "/(/"}, "regular expression"),
        (None, "number, true, false or text"),
        ([[1]], "number, true, false or text"),
        (float("nan"), "finite"),
        ([1, float("inf")], "finite"),
    ],
)
def test_parse_refuses(raw: object, words: str) -> None:
    """A setting that cannot be meant is refused, and the message says what is wrong."""
    with pytest.raises(PlaitError, match=words):
        Setting.parse(raw)


scalars = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9) | st.booleans() | st.text(max_size=5)
values = scalars | st.lists(scalars, min_size=1, max_size=4)
filters = st.none() | st.sampled_from(["mlp", "*", "*.x", "/a|b/", ""])
conditions = st.builds(lambda v, f: {"value": v} if f is None else {"filter": f, "value": v}, values, filters)


@settings(deadline=None)
@given(values | conditions | st.lists(conditions, min_size=1, max_size=4))
def test_round_trip(raw: object) -> None:
    """A setting written out and read again is the same setting."""
    setting = Setting.parse(raw)
    assert Setting.parse(setting.plain()) == setting


@settings(deadline=None)
@given(st.integers(1, 200))
def test_position(count: int) -> None:
    """Layers run from 0 to 1 in equal steps, and an only layer is at 1."""
    steps = [position(i, count) for i in range(count)]
    assert steps[-1] == 1
    assert count == 1 or steps[0] == 0
    assert steps == sorted(steps)
