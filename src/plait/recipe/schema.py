"""The JSON Schema of a recipe, which lets an editor complete and check it while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.recipe.keys import RecipeKeys, setting_schema


def schema(methods: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Every key of a recipe with its description.

    `methods` maps each method's name to its parameters: name -> JSON Schema of one scalar value. With it, the schema
    knows the methods, and which parameters each of them takes.
    """
    result = RecipeKeys.model_json_schema()
    result |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "plait recipe"}
    if methods:
        result["properties"]["merge_method"]["enum"] = list(methods)
        result["$defs"] |= {f"{name}-parameters": _parameters(scalars) for name, scalars in methods.items()}
        result["allOf"] = [_when(name) for name in methods]
    return result


def _parameters(scalars: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        name: {**setting_schema(dict(scalar)), "description": scalar.get("description", "")}
        for name, scalar in scalars.items()
    }
    of_bricks = {r"^\w+\.\w+$": setting_schema({"type": ["number", "boolean", "string"]})}
    return {
        "type": ["object", "null"],
        "properties": settings,
        "patternProperties": of_bricks,
        "additionalProperties": False,
    }


def _when(method: str) -> dict[str, Any]:
    parameters = {"parameters": {"$ref": f"#/$defs/{method}-parameters"}}
    models = {"items": {"properties": parameters}}
    slices = {"items": {"properties": {**parameters, "sources": models}}}
    module = {"properties": {**parameters, "models": models, "slices": slices}}
    return {
        "if": {"properties": {"merge_method": {"const": method}}, "required": ["merge_method"]},
        "then": {"properties": {**module["properties"], "modules": {"additionalProperties": module}}},
    }
