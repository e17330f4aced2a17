"""Parameter values for tests: the method's defaults, and what a test says."""

from __future__ import annotations

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
