"""Parameter values for tests: the method's defaults, and what a test says; and what the files of oracles hold."""

from __future__ import annotations

import importlib
from pathlib import Path

from plait.methods import registry

WEIGHT = (0.5, 0.3, 0.4)


def values(name: str, given: dict, models: int) -> dict:
    """All parameters of a method; one value stands for all models, a tuple is cut to as many as there are."""
    found = {}
    for p in registry()[name].parameters:
        value = given.get(p.name, WEIGHT if p.required and p.per_model else p.default)
        if p.per_model:
            value = value[:models] if isinstance(value, tuple) else (value,) * models
        found[p.name] = value
    return found


def gathered(name: str) -> dict:
    """The dictionaries of this name in all files `oracles*.py`, as one: `ORACLES`."""
    found: dict = {}
    for path in sorted(Path(__file__).parent.glob("oracles*.py")):
        found |= getattr(importlib.import_module(f"methods.{path.stem}"), name, {})
    return found
