"""The values of parameters for one output tensor, and where in the recipe each is from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plait.errors import PlanError, Where
from plait.method import Declared, Parameter
from plait.plan.records import Given
from plait.recipe import Settings
from plait.strands import Model, Strand

#: where values are looked for, nearest first; for a parameter of one model, or (None) for a shared one
Scopes = Callable[[Strand | None], Sequence[tuple[str, Settings]]]


def values(
    declared: Declared,
    models: Sequence[Model],
    scopes: Scopes,
    taking: Sequence[tuple[Strand, str]],
    name: str,
    t: float,
    where: Where | None,
    called: str = "",
) -> tuple[dict[str, Any], tuple[Given, ...]]:
    """(parameter -> value or one value a model, the same with their origins) of a method or brick for the output tensor `name`.

    `taking`: the models that are combined, each with the tensor's name there, which per-model filters are matched with; `t`:
    the depth for gradients; `where`: who is to blame for what is missing; `called`: put before parameters in the origins.
    Raises `PlanError` for a required parameter without a value.
    """
    found: dict[str, Any] = {}
    origins: list[Given] = []

    def value(parameter: Parameter, own: str, strand: Strand | None) -> Any:
        title, model = called + parameter.name, strand.model if strand else None
        for scope, settings in scopes(strand):
            setting = settings.get(parameter.name)
            given = setting.evaluate(own, t, parameter.kind) if setting else None
            if given:
                origins.append(Given(title, given.value, model, scope, given.where))
                return given.value
        if parameter.required:
            whom = f" for {models[strand.model].ref}" if strand else ""
            raise PlanError(
                f"{declared.name} needs {parameter.name}{whom}",
                wanted=parameter.doc,
                found=f"no value for {name}",
                do=f"add a line without a filter: {parameter.name}: …",
                where=(strand.where if strand else None) or where,
            )
        origins.append(Given(title, parameter.default, model, "the default", None))
        return parameter.default

    for parameter in declared.parameters:
        if parameter.per_model:
            found[parameter.name] = tuple(value(parameter, own, strand) for strand, own in taking)
        else:
            found[parameter.name] = value(parameter, name, None)
    return found, tuple(origins)
