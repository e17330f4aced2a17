"""Recipe and method together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait import fit
from plait.methods import registry
from plait.recipe import load
from plait.recipe.schema import schema


def found(recipe: dict[str, Any] | str, lenient: bool = False) -> list[str]:
    errors, _ = fit.problems(load(recipe), lenient=lenient)
    return [str(error) for error in errors]


def merge(method: str, *models: str, **rest: Any) -> dict[str, Any]:
    """A recipe of the given models, each `NAME` or `NAME PARAMETER=VALUE …`."""
    entries = []
    for name, *settings in (model.split() for model in models):
        parameters = {key: json.loads(value) for key, value in (s.split("=") for s in settings)}
        entries.append({"model": name, **({"parameters": parameters} if parameters else {})})
    return {"merge_method": method, "models": entries, **rest}


GOOD = [
    merge("linear", "a weight=1", "b weight=0.5"),
    merge("linear", "a", "b", parameters={"weight": "1e-1", "normalize": 1.0}),
    merge("slerp", "a", "b", base_model="a", parameters={"t": [0, 1]}),
    merge("slerp", "a", base_model="b", parameters={"t": 2}),
    merge("ties", "base", "a weight=1 density=0.5", base_model="base"),
    merge("ties", "a weight=1", base_model="base", parameters={"int8_mask": True, "lambda": 1}),
    merge("passthrough", "a"),
    merge("passthrough", "a scale=[0.5,2]", base_model="a"),
]


@pytest.mark.parametrize("recipe", GOOD, ids=lambda r: r["merge_method"])
def test_good(recipe: dict[str, Any]) -> None:
    """A recipe that gives a method what it wants has no problems."""
    assert found(recipe) == []


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (merge("slrep", "a"), "did you mean slerp?"),
        (merge("qqq", "a"), "linear"),
        (merge("slerp", "a", "b", parameters={"t": 0.5}), "slerp needs a base_model"),
        (merge("slerp", "a", "b", base_model="a"), "slerp needs 't'"),
        (merge("slerp", "a", "b", "c", base_model="a", parameters={"t": 0}), "takes 1 model besides the base"),
        (merge("linear", "a weight=1", "b"), "linear needs 'weight' for b"),
        (merge("linear", "a weight=1", base_model="b"), "linear needs 'weight' for b"),
        (merge("ties", "a weight=1", "b", base_model="base"), "ties needs 'weight' for b"),
        (merge("passthrough", "a", "b"), "passthrough takes 1 model"),
        (merge("passthrough", "a", base_model="b"), "remove 'base_model:'"),
        (merge("ties", 'a weight="lots"', base_model="b"), "weight cannot be 'lots'"),
        (merge("ties", "a weight=1 density=50", base_model="b"), "not a percentage"),
        (merge("ties", "a weight=1 density=[0.1,-1]", base_model="b"), "density cannot be -1"),
        (merge("linear", "a weight=1", parameters={"normalize": 3}), "true or false"),
    ],
)
def test_refuses(recipe: dict[str, Any], words: str) -> None:
    """What a method cannot work with is refused, lenient or not."""
    for lenient in (False, True):
        (error,) = found(recipe, lenient)
        assert words in error


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (merge("ties", "a weight=1", base_model="b", parameters={"nomalize": True}), "did you mean 'normalize'?"),
        (merge("linear", "a weight=1 normalize=true"), "move it to 'parameters:' at the top level"),
        (merge("ties", "a weight=1", base_model="b", parameters={"int_space": "cs"}), "delete it"),
    ],
)
def test_parameters_that_are_never_read(recipe: dict[str, Any], words: str) -> None:
    """A parameter without effect is an error with the mend, and a warning when lenient."""
    (error,) = found(recipe)
    assert words in error
    errors, (warning,) = fit.problems(load(recipe), lenient=True)
    assert errors == []
    assert words in warning
    assert "ignored, as mergekit does" in warning


def test_a_parameter_of_another_method() -> None:
    """A parameter that only other methods have is told as a leftover that changes nothing, and is no error."""
    errors, (warning,) = fit.problems(load(merge("linear", "a weight=1 density=0.5")))
    assert errors == []
    assert "linear has no parameter 'density', so it changes nothing" in warning
    assert "ties" in warning


def test_t_under_a_model() -> None:
    """A shared parameter written under a model is explained: where it stands and where it belongs."""
    text = "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n    parameters:\n      t: 0.5\n"
    errors, warnings = fit.problems(load(text), lenient=True)
    assert [(e.what, e.where and e.where.line) for e in errors] == [("slerp needs 't'", 7)]
    assert "move 't:' from the model" in str(errors[0])
    assert "under a single model it is not looked at" in warnings[0]


def test_slices_name_their_base() -> None:
    """In slices the base must be among the sources, each slice is checked, and a slice's own base counts."""
    text = (
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n"
        "  - sources: [{model: c, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]\n"
    )
    errors, _ = fit.problems(load(text))
    assert {e.where and e.where.line for e in errors} == {6}
    assert "the base_model is not among the sources" in str(errors[0])
    assert found(text + "    base_model: c\n") == []


def test_a_value_in_any_scope_will_do() -> None:
    """A required parameter may come from the model, the slice, the module or the recipe."""
    sources = [{"model": "a", "layer_range": [0, 1]}]
    bare = {"merge_method": "linear", "slices": [{"sources": sources}]}
    assert len(found(bare)) == 1
    assert found({**bare, "parameters": {"weight": 1}}) == []
    assert found({**bare, "slices": [{"sources": sources, "parameters": {"weight": 1}}]}) == []
    assert found({**bare, "slices": [{"sources": [{**sources[0], "parameters": {"weight": 1}}]}]}) == []
    modules = {"text": {"models": [{"model": "a"}], "parameters": {"weight": 1}}}
    assert found({"merge_method": "linear", "modules": modules}) == []


def test_warnings_of_likely_mistakes() -> None:
    """A list as long as the models is not one value a model, and linear has no base: both are said, neither is refused."""
    errors, (one, two) = fit.problems(load(merge("linear", "a", base_model="b", parameters={"weight": [0.3, 0.7]})))
    assert errors == []
    assert "a gradient over the layers" in one
    assert "one more model" in two


def test_schema_of_the_methods() -> None:
    """Every parameter of every method goes into the editor's schema with its type, range and meaning."""
    full = schema(fit.parameter_schemas(registry()))
    assert full["properties"]["merge_method"]["enum"] == list(registry())
    for name, method in registry().items():
        properties = full["$defs"][f"{name}-parameters"]["properties"]
        assert list(properties) == [p.name for p in method.parameters]
        assert all(p["description"] and p["anyOf"][0]["type"] for p in properties.values())
    assert full["$defs"]["ties-parameters"]["properties"]["density"]["anyOf"][0]["maximum"] == 1
    json.dumps(full)
