"""The values of a method's parameters for one output tensor, and where in the recipe each is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.errors import PlanError
from plait.method import Method, Parameter
from plait.plan.records import Given
from plait.recipe import Recipe
from plait.strands import Band, Model, Strand


def values(
    recipe: Recipe,
    method: Method,
    models: Sequence[Model],
    band: Band,
    taking: Sequence[tuple[Strand, str]],
    name: str,
    t: float,
) -> tuple[dict[str, Any], tuple[Given, ...]]:
    """(parameter -> value or one value a model, the same with their origins) for the output tensor `name`.

    `taking`: the models that are combined, each with the tensor's name there, which per-model filters are matched with.
    Raises `PlanError` for a required parameter without a value.
    """
    found: dict[str, Any] = {}
    origins: list[Given] = []
    for parameter in method.parameters:
        if parameter.per_model:
            each = [_value(recipe, method, models, parameter, band, t, own, strand) for strand, own in taking]
            found[parameter.name] = tuple(given.value for given in each)
            origins += each
        else:
            given = _value(recipe, method, models, parameter, band, t, name, None)
            found[parameter.name] = given.value
            origins.append(given)
    return found, tuple(origins)


def _value(
    recipe: Recipe,
    method: Method,
    models: Sequence[Model],
    parameter: Parameter,
    band: Band,
    t: float,
    name: str,
    strand: Strand | None,
) -> Given:
    """The first scope that has a value for this tensor, else the method's default."""
    scopes = (("the model", strand.parameters), *band.scopes) if strand else band.scopes
    model = strand.model if strand else None
    for scope, parameters in scopes:
        setting = parameters.get(parameter.name)
        found = setting.evaluate(name, t, parameter.kind) if setting else None
        if found:
            return Given(parameter.name, found.value, model, scope, found.where)
    if parameter.required:
        whom = f" for {models[strand.model].ref}" if strand else ""
        raise PlanError(
            f"{method.name} needs {parameter.name}{whom}",
            wanted=parameter.doc,
            found=f"no value for {name}",
            do=f"add a line without a filter: {parameter.name}: …",
            where=(strand.where if strand else None) or recipe.at("merge_method"),
        )
    return Given(parameter.name, parameter.default, model, "the default", None)
