"""The table of what methods do has a recipe for each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import plait
from plait.bricks import bricks
from plait.methods import registry

PATH = Path(__file__).parents[2] / "benchmarks" / "methods.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_methods", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = BENCHMARK
SPEC.loader.exec_module(BENCHMARK)


@pytest.mark.parametrize("name", [*registry(), *bricks()])
def test_every_method_has_a_recipe_that_can_be_merged(name):
    """The benchmark's recipe for each method and brick has no problem; one that needs more than a weight has a choice there."""
    assert plait.check(BENCHMARK.recipe(name)) == []


def test_choices_are_of_methods_and_not_the_defaults():
    """Each choice is of a method or brick that there is, and differs from what it would be without it."""
    for name, (given, reason) in BENCHMARK.CHOICES.items():
        brick = bricks().get(name)
        defaults = {p.name: p.default for p in (brick or registry()[name]).parameters}
        defaults |= {"weight": 1.0, "then": None} if brick else {}
        assert reason
        assert all(defaults.get(key) != value for key, value in given.items())
    assert set(BENCHMARK.THEIRS.split()) <= set(registry())
