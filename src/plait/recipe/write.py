"""Recipes that are made, and a recipe as YAML, as one would write it by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from plait.errors import RecipeError

#: (which model, number of the layer)
Layer = tuple[int, int]


def text(recipe: Mapping[str, Any]) -> str:
    """The keys in their order; lists and mappings of plain values on one line."""
    return str(yaml.safe_dump(dict(recipe), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120))


def stacked(models: Sequence[str], order: Sequence[Layer], dtype: str | None = None) -> dict[str, Any]:
    """The recipe that stacks layers in this order; neighbours that stand in a row are one slice."""
    runs: list[tuple[int, int, int]] = []
    for model, layer in order:
        if runs and runs[-1][0] == model and runs[-1][2] == layer:
            runs[-1] = (model, runs[-1][1], layer + 1)
        else:
            runs.append((model, layer, layer + 1))
    slices = [{"sources": [{"model": models[m], "layer_range": [start, stop]}]} for m, start, stop in runs]
    return {"merge_method": "passthrough", "slices": slices, **({"dtype": dtype} if dtype else {})}


def over(base: str, models: Sequence[str | Mapping[str, Any]], weights: Sequence[float] = ()) -> dict[str, Any]:
    """The recipe that adds the changes of models to their base, each times its weight, or 1."""
    shares = weights or [1.0] * len(models)
    entries = [{"model": m, "parameters": {"weight": w}} for m, w in zip(models, shares, strict=True)]
    return {"merge_method": "task_arithmetic", "base_model": base, "models": entries}


def together(
    models: Sequence[str], weights: Sequence[float], method: str | None, given: Sequence[str], weighted: bool
) -> dict[str, Any]:
    """The recipe of models by a method, by default their sum; parameters are given as NAME=VALUE."""
    parameters = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            what, do = f"the parameter {each!r} has no value", f"write {each}=, and its value"
            raise RecipeError(what, wanted="NAME=VALUE", found=each, do=do)
        parameters[name] = yaml.safe_load(value)
    shares = list(weights or [1.0]) * (len(models) if len(weights) <= 1 else 1)
    entries: list[dict[str, Any]] = [{"model": model} for model in models]
    for entry, share in zip(entries, shares, strict=True) if weighted else ():
        entry["parameters"] = {"weight": share}
    made = {"merge_method": method or "task_arithmetic", "models": entries}
    return {**made, **({"parameters": parameters} if parameters else {})}


def applied(base: str, adapters: Sequence[str], weights: Sequence[float] = ()) -> dict[str, Any]:
    """The recipe that puts adapters into their base, each times its weight, or 1."""
    named = [f"{base}+{adapter}" for adapter in adapters]
    if len(named) == 1 and list(weights or [1.0]) == [1.0]:
        return {"merge_method": "passthrough", "models": [{"model": named[0]}]}
    return over(base, named, weights)
