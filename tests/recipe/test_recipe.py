"""Recipes: the YAML of mergekit's users in plait's nouns, and what is said about wrong ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from plait.errors import PlaitError, Problems, Where
from plait.recipe import Recipe, TokenRule, load
from plait.recipe.schema import schema
from plait.types import ModelRef

TIES = """\
# a comment
models:
  - model: org/a@v1
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1e-1
  - model: ./b+adapter
    parameters:
      weight: {filter: mlp, value: 0.5}
merge_method: ties
base_model: {model: {path: org/base, revision: main}, override_architecture: LlamaForCausalLM}
parameters: {normalize: true}
dtype: torch.bfloat16
out_dtype: float16
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <a>: {source: org/a@v1, force: true}
    <b>: {source: {kind: model_token, model: org/a@v1, token_id: 5}}
    <c>: {source: {kind: zero}}
    <d>: {force: true}
chat_template: auto
name: mine
"""

SLICES = """\
merge_method: passthrough
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
    parameters: {scale: 2}
  - base_model: c
    residual_weight: 0.5
    sources:
      - {model: b, layer_range: [2, 6]}
"""


def problems(text: str, **options: Any) -> list[PlaitError]:
    with pytest.raises(PlaitError) as caught:
        load(text, **options)
    error = caught.value
    return error.problems if isinstance(error, Problems) else [error]


def test_reads_a_recipe() -> None:
    """Every key of a recipe arrives in its noun."""
    recipe = load(TIES)
    a, b = recipe.models or ()
    assert (recipe.method, recipe.dtype, recipe.out_dtype) == ("ties", "BF16", "F16")
    assert (recipe.chat_template, recipe.name) == ("auto", "mine")
    assert a.model == ModelRef("org/a", "v1")
    assert b.model == ModelRef("b", adapter="adapter")
    assert recipe.base == ModelRef("org/base", "main", architecture="LlamaForCausalLM")
    assert recipe.text == TIES
    found = a.parameters["weight"].evaluate("x", 0, float)
    assert found
    assert (found.value, found.where) == (0.1, Where("recipe", 6, 15))
    assert b.parameters["weight"].evaluate("self_attn", 0, float) is None
    assert recipe.at("dtype") == Where("recipe", 13, 8)
    assert recipe.tokenizer
    assert (recipe.tokenizer.source, recipe.tokenizer.pad_to_multiple_of) == ("union", 64)
    assert recipe.tokenizer.tokens == {
        "<a>": TokenRule("model", a.model, force=True),
        "<b>": TokenRule("token", a.model, token_id=5),
        "<c>": TokenRule("zero"),
        "<d>": TokenRule("default", force=True),
    }


def test_reads_slices() -> None:
    """Slices keep their sources, layers, bases and settings."""
    first, second = load(SLICES).slices or ()
    assert first.sources[0].layers == (0, 4)
    assert first.parameters["scale"].plain() == 2
    assert (second.base, second.sources[0].where) == (ModelRef("c"), Where("recipe", 9, 9))


def test_reads_modules() -> None:
    """Each module of `modules:` has models or slices, and an empty range is allowed there for a part without layers."""
    recipe = load(
        {
            "merge_method": "linear",
            "modules": {
                "text": {"models": [{"model": "a"}], "parameters": {"weight": 1}},
                "projector": {"slices": [{"sources": [{"model": "a", "layer_range": [0, 0]}]}]},
            },
        }
    )
    assert [name for name, _ in recipe.parts()] == ["text", "projector"]


def test_references_come_in_order_once() -> None:
    """References are listed once each: sources, the slices' bases, the base, the tokenizer's."""
    assert [ref.path for ref in load(SLICES + "base_model: b\ntokenizer_source: d\n").references()] == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_resolved_adds_the_base_to_models_only() -> None:
    """With `models:` an unlisted base becomes the last source, without settings; slices keep what is written."""
    ((_, whole, scopes),) = load(TIES).resolved()
    assert [str(source.model) for source in whole.sources] == ["org/a@v1", "b+adapter", "org/base@main"]
    assert not whole.sources[-1].parameters
    assert "normalize" in scopes[-1]
    listed = load({"merge_method": "ties", "models": [{"model": "x"}, {"model": "./x/"}][:1], "base_model": "x"})
    assert [len(piece.sources) for _, piece, _ in listed.resolved()] == [1]
    bases = [piece.base for _, piece, _ in load(SLICES + "base_model: b\n").resolved()]
    assert bases == [ModelRef("b"), ModelRef("c")]


def test_sources_of_a_recipe(tmp_path: Path) -> None:
    """A path, the same text and the same mapping are the same recipe; only texts have lines."""
    path = tmp_path / "r.yml"
    path.write_text(TIES)
    from_path, from_text, from_map = load(path), load(TIES), load(yaml.safe_load(TIES))
    assert from_path == from_text == from_map
    assert (from_path.path, from_text.path, from_map.path) == (str(path), None, None)
    assert from_path.at("dtype") == Where(str(path), 13, 8)
    assert from_map.at("dtype") is None
    assert load(from_map.text) == from_map


LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n  - model: b\n"
SLERP = "merge_method: slerp\nslices:\n  - sources:\n      - model: a\n        layer_range: [0, 4]\n      - model: b\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (LINEAR + "dype: float16\n", 6, "did you mean 'dtype'"),
        (LINEAR + "select_topk: 0.1\n", 6, "put it under 'parameters:'"),
        (LINEAR + "parmeters: {}\n", 6, "did you mean 'parameters'"),
        (LINEAR + "    weight: 2\n", 6, "put it under 'parameters:'"),
        (LINEAR + "    revision: main\n", 6, "MODEL@REVISION"),
        (LINEAR + "    lora: x\n", 6, "MODEL+ADAPTER"),
        (LINEAR + "    layer_range: [0, 2]\n", 6, "sources"),
        (LINEAR + "parameters:\n  dtype: float16\n", 7, "top level"),
        (LINEAR + "parameters:\n  weight:\n    - {pattern: x, value: 1}\n", 8, "write 'filter'"),
        (SLERP + "        layer_range: [0, 4]\nweights: 3\n", 8, "the keys are"),
        ("method: linear\n" + LINEAR, 1, "merge_method"),
        (LINEAR + "base_model: {model: {path: a, revison: x}}\n", 6, "did you mean 'revision'"),
        (LINEAR + "base_model: {model: a, adapter: x}\n", 6, "the keys are model, lora"),
        (LINEAR + "tokenizer: {tokens: {x: {source: {kind: zero, rank: 3}}}}\n", 6, "the keys are"),
    ],
)
def test_unknown_keys(text: str, line: int, words: str) -> None:
    """A key that mergekit would ignore is an error with its line and the mend; lenient, it is a warning that says the same."""
    (error,) = problems(text)
    assert error.where
    assert (error.where.line, words in (error.do or "")) == (line, True), str(error)
    (warning,) = load(text, lenient=True).warnings
    assert "ignored, as mergekit does" in warning
    assert str(error.do) in warning


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("models:\n  - model: a\n", 1, "'merge_method' is missing"),
        ("merge_method: linear\n", 1, "exactly one of models, slices or modules"),
        ("merge_method: linear\nmodels: []\n", 2, "'models' is empty"),
        (LINEAR + "slices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n", 7, "models and slices"),
        ("merge_method: linear\nmodels: a\n", 2, "a list"),
        ("merge_method: linear\nmodels:\n  - a\n", 3, "a mapping"),
        ("merge_method: linear\nmodels:\n  - model: 7\n", 3, "quote it"),
        ("merge_method: linear\nmodels:\n  - model: a@b@c\n", 3, "more than one '@'"),
        ("merge_method: linear\nmodels:\n  - model: {NAME}\n", 3, "not filled in"),
        ("merge_method: linear\nmodels:\n  - model: ...\n", 3, "left out"),
        ("merge_method: linear\nmodels:\n  - {model: a}\n  - {model: ./a/}\n", 4, "stands twice"),
        (LINEAR + "dtype: bfloat\n", 6, "write bfloat16"),
        (LINEAR + "dtype: bf16\n", 6, "write bfloat16"),
        (LINEAR + "dtype: bfloat16`\n", 6, "write bfloat16"),
        (LINEAR + "out_dtype: int64\n", 6, "destroy the weights"),
        (LINEAR + "dtype: 16\n", 6, "not a dtype"),
        (SLERP, 6, "'layer_range' is missing"),
        (SLERP + "        layer_range: [0, -1]\n", 7, "negative"),
        (SLERP + "        layer_range: [4, 0]\n", 7, "[0, 4]"),
        (SLERP + "        layer_range: [2, 2]\n", 7, "[2, 3]"),
        (SLERP + "        layer_range: 4\n", 7, "two whole numbers"),
        (SLERP + "        layer_range: [0, 3]\n", 6, "differ in length"),
        ("merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 0]}]\n", 3, "no layer"),
        ("merge_method: passthrough\nslices:\n  - sources: []\n", 3, "no sources"),
        (LINEAR + "parameters: {weight: [1, {value: 2}]}\n", 6, "mixed"),
        (LINEAR + "parameters: {weight: []}\n", 6, "weight: a gradient is empty"),
        (LINEAR + "parameters: {weight: .nan}\n", 6, "finite"),
        (LINEAR + "parameters:\n  weight:\n", 7, "found:  nothing"),
        (LINEAR + "parameters: 3\n", 6, "parameters are a mapping"),
        (LINEAR + "tokenizer: {}\ntokenizer_source: base\n", 7, "both given"),
        (LINEAR + "tokenizer_source: model:x\n", 6, "old spelling"),
        (LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n", 6, "at least 1"),
        (LINEAR + "tokenizer: {tokens: {x: {source: {kind: one}}}}\n", 6, "model_token or zero"),
        (LINEAR + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n", 6, "token_id"),
        (LINEAR + "chat_template: chatmI\n", 6, "write chatml"),
        (LINEAR + "chat_template: [x]\n", 6, "Jinja"),
        (LINEAR + "name: 3\n", 6, "quote it"),
        ("merge_method: x\nmodules:\n  a: {models: [{model: a}], slices: [{sources: []}]}\n", 3, "needs exactly one"),
        ("- a\n", 1, "a recipe is a mapping"),
        ("\n", 0, "a recipe is a mapping"),
        (LINEAR + "---\n" + LINEAR, 7, "holds 2 recipes"),
    ],
)
def test_refuses(text: str, line: int, words: str) -> None:
    """What cannot be meant is refused, lenient or not, with its line and what to do."""
    for lenient in (False, True):
        error = problems(text, lenient=lenient)[0]
        assert words in str(error)
        assert error.do
        assert (error.where.line if error.where else 0) == line


def test_all_problems_come_together() -> None:
    """One reading tells every problem, in the order of the text."""
    text = "merge_method: linear\nmodels:\n  - model: a\n    wieght: 1\n    parameters: {weight: []}\ndtype: half\nnmae: x\n"
    assert [error.where and error.where.line for error in problems(text)] == [4, 5, 6, 7]
    assert len(problems(text, lenient=True)) == 4


def test_mapping_that_is_no_recipe() -> None:
    """A mapping from Python with something in it that YAML cannot hold is refused."""
    circle: dict[str, Any] = {}
    circle["models"] = [circle]
    for wrong in ({"models": object()}, {1: 2}, circle, {"models": b"x"}):
        with pytest.raises(PlaitError):
            load(wrong)  # type: ignore[arg-type]


KEYS = [
    "models",
    "slices",
    "sources",
    "model",
    "parameters",
    "weight",
    "layer_range",
    "merge_method",
    "dtype",
    "tokenizer",
]
KEYS += ["tokens", "source", "kind", "filter", "value", "modules", "base_model", "chat_template", "lora", "path", "x"]
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(["a", "a@b", "+", "*", "/(/", "ties", ""])
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@options(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), trees, max_size=6), st.booleans())
def test_any_tree(tree: dict[str, Any], lenient: bool) -> None:
    """Any tree, and its YAML, gives a recipe or a PlaitError, and the same of both."""
    outcomes: list[Recipe | None] = []
    for source in (tree, yaml.safe_dump(tree)):
        recipe = None
        with contextlib.suppress(PlaitError):
            recipe = load(source, lenient=lenient)
        outcomes.append(recipe)
    assert outcomes[0] == outcomes[1]


models = st.sampled_from(["a", "b", "org/c@v1", "d+e"])
settings = st.dictionaries(
    st.sampled_from(["weight", "density"]),
    st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=1, max_size=3),
    max_size=2,
)
entry = st.fixed_dictionaries({"model": models}, optional={"parameters": settings})
recipes = st.fixed_dictionaries(
    {
        "merge_method": st.just("ties"),
        "models": st.lists(entry, min_size=1, max_size=3, unique_by=lambda e: e["model"]),
    },
    optional={
        "base_model": models,
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "parameters": settings,
        "tokenizer": st.fixed_dictionaries({}, optional={"source": st.just("base")}),
    },
)


@options(deadline=None)
@given(recipes)
def test_round_trip(tree: dict[str, Any]) -> None:
    """A recipe's own text gives the same recipe."""
    recipe = load(tree)
    assert load(recipe.text) == recipe


def test_schema_knows_every_key() -> None:
    """The JSON Schema describes each key, refuses unknown ones, and knows the methods and parameters it is given."""
    plain = schema()
    assert {"merge_method", "models", "slices", "modules", "tokenizer", "dtype"} <= plain["properties"].keys()
    levels = [plain, *(d for d in plain["$defs"].values() if "properties" in d)]
    assert all(level["additionalProperties"] is False for level in levels)
    assert all(key.get("description") for level in levels for key in level["properties"].values())
    full = schema({"ties": {"density": {"type": "number", "maximum": 1, "description": "share"}}})
    assert full["properties"]["merge_method"]["enum"] == ["ties"]
    density = full["$defs"]["ties-parameters"]["properties"]["density"]
    assert density["description"] == "share"
    assert density["anyOf"][0]["maximum"] == 1
    assert "enum" not in plain["properties"]["merge_method"]
    json.dumps(full)
