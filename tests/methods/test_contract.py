"""The contract of methods: plait's own keep it, and each law catches the method that breaks it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from plait.bricks import bricks
from plait.method import Method, PerModel, method, param
from plait.methods import registry
from plait.ops.combine import weighted_sum
from plait.ops.pieces import total
from plait.testing.methods import LAWS, check


@pytest.mark.parametrize("name", registry())
def test_method_keeps_its_contract(name):
    """Every registered method keeps every law of the contract, and breaks those that it says it breaks."""
    assert check(registry()[name]) == []


@pytest.mark.parametrize("parts", [registry(), bricks()], ids=["methods", "bricks"])
def test_a_file_has_the_name_of_what_it_defines(parts):
    """So that only the files of a recipe's methods are loaded."""
    assert [part.name for part in parts.values()] == sorted(parts)


def test_only_what_is_used_is_loaded():
    code = "import sys; from plait.methods import registry; registry()['linear']; "
    code += "print([m for m in sys.modules if m.startswith('plait.methods.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['plait.methods.linear']\n"


@dataclasses.dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model counts.")
    scale: float = param("Scale of the whole sum.", default=1.0, low=0, high=2)


def toy(function, **given) -> Method:
    """A method that keeps the contract but for what `function` and `given` break."""
    doc = "Add weighted differences.\n\nReference: A paper, https://example.org/paper"
    made = method(given.pop("params", Params), **{"space": "delta", "base": "required", **given})(function)
    return dataclasses.replace(made, doc=doc)


def add(piece, p):
    return weighted_sum(piece.models, [w * p.scale for w in p.weight])


def test_a_good_method_is_not_blamed():
    """A method that keeps the contract has an empty list."""
    assert check(toy(add)) == []


def drop_columns(piece, p):
    return add(piece, p)[:, :1]


def one_weight(p, _):
    return [p.weight[0]]


def overflow(piece, p):
    return add(piece, p) * 1e39


def refuse_empty_rows(piece, p):
    if piece.models[0].shape[0] < 2:
        raise IndexError("no second row")
    return add(piece, p)


def divide_by_scale(piece, p):
    return add(piece, p) / p.scale


def give_float64(piece, p):
    return add(piece, p).double()


def draw(piece, p):
    return add(piece, p) * (torch.rand_like(piece.models[0]) < 0.5)


def scale_in_place(piece, p):
    piece.models[0].mul_(p.weight[0])
    return add(piece, p)


def subtract_the_mean(piece, p):
    x = add(piece, p)
    return x - x.mean() * 0.01


def summed(pieces, p):
    return total(pieces, lambda block: block[0].double().abs().sum())


def scale_by_the_sum(piece, p):
    return add(piece, p) * piece.whole.item()


def double(piece, p):
    return 2 * add(piece, p)


def shift(piece, p):
    return add(piece, p) + 1e-3


def keep_the_large(piece, p):
    return torch.where(piece.models[0].abs() > 0.1, add(piece, p), 0.0)


@dataclasses.dataclass(frozen=True)
class Unsaid:
    weight: PerModel[float] = param("")
    scale: float = param("Scale of the whole sum.", default=1.0)


@dataclasses.dataclass(frozen=True)
class Unbounded:
    weight: PerModel[float] = param("How much each model counts.")
    scale: float = param("Scale of the whole sum.", default=3.0, low=0, high=2)


@dataclasses.dataclass(frozen=True)
class Backwards:
    weight: PerModel[float] = param("How much each model counts.")
    scale: float = param("Scale of the whole sum.", low=2, high=1)


@dataclasses.dataclass
class Thawed:
    weight: PerModel[float] = param("How much each model counts.")
    scale: float = param("Scale of the whole sum.", default=1.0)


BROKEN = [
    ("documented", toy(add, params=Unsaid), "weight: say in one sentence"),
    ("documented", dataclasses.replace(toy(add), doc="Add weighted differences."), "Reference"),
    ("documented", dataclasses.replace(toy(add), doc=""), "first line"),
    ("bounded", toy(add, params=Unbounded), "3.0 is not among the allowed values"),
    ("bounded", toy(add, params=Backwards), "lower bound 2 is not below"),
    ("bounded", toy(add, params=Thawed), "frozen"),
    ("bounded", toy(add, inputs=(3, 2)), "inputs (3, 2)"),
    ("bounded", toy(add, inputs=(0, 2), base="optional"), "needs a base"),
    ("results fit", toy(drop_columns), "returned (33, 1) torch.float32, wanted (33, 65) torch.float32"),
    ("results fit", toy(one_weight, gives="coefficients"), "returned 1 coefficients, wanted 3"),
    ("shapes", toy(overflow), "not finite"),
    ("shapes", toy(refuse_empty_rows), "IndexError: no second row"),
    ("extreme values", toy(divide_by_scale), "scale=0.0"),
    ("results fit", toy(give_float64), "returned (33, 65) torch.float64, wanted (33, 65) torch.float32"),
    ("deterministic", toy(draw), "piece.uniform"),
    ("inputs untouched", toy(scale_in_place), "in place"),
    ("unit is true", toy(subtract_the_mean), "the unit 'entry' is too small"),
    ("threads do not matter", toy(scale_by_the_sum, first=summed), "row_sums"),
    ("equal models give that model", toy(double), "equal models do not give that model"),
    ("no change gives no change", toy(shift), "do not give the base"),
    ("nothing hides nan", toy(keep_the_large), "NaN in model 1 is hidden"),
]


@pytest.mark.parametrize(("law", "broken", "words"), BROKEN, ids=[f"{law}-{i}" for i, (law, _, _) in enumerate(BROKEN)])
def test_each_law_catches_the_method_that_breaks_it(law, broken, words):
    """Each law finds the method that breaks it, and says in what."""
    assert any(words in sentence for sentence in check(broken, skip=LAWS.keys() - {law}))


def test_each_law_has_a_method_that_breaks_it():
    """No law is without a proof that it can fail."""
    assert {law for law, _, _ in BROKEN} == set(LAWS)


def test_a_skipped_law_is_not_checked():
    """What a method does not promise is not held against it."""
    assert check(toy(double)) != []
    assert check(toy(double), skip=["equal models give that model"]) == []


def test_a_law_that_a_method_says_it_breaks():
    """It is not held against it, unless the method keeps it, or there is no such law."""
    law = "equal models give that model"
    assert check(toy(double, breaks=(law,))) == []
    assert check(toy(add, breaks=(law,))) == [
        f"{law}: kept, although the method says that it breaks this law; take it out of `breaks`"
    ]
    assert any("is no law" in sentence for sentence in check(toy(add, breaks=("no law",))))
