"""The keys of a recipe and what may stand under each.

The pydantic classes here are the edge: they describe the text and make its JSON Schema; `recipe` turns what they read
into plait's nouns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from plait.errors import PlaitError, Problems, RecipeError, nearest, raise_all
from plait.recipe.damage import short
from plait.recipe.document import key_place, place, plain
from plait.recipe.grammar import Keys, Reading, kind_of, parse, reader
from plait.recipe.rules import KINDS, BrickUse, Otherwise, When, read_bricks, read_copy, read_otherwise, read_when
from plait.recipe.setting import Setting, coerce
from plait.types import CODES, DTYPES, MERGEABLE, ModelRef

#: chat templates that can be named in a recipe, besides `auto` and a template's own text
CHAT_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
_DTYPE_NAMES = [DTYPES[code].name for code in MERGEABLE]
_DTYPE_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
_DTYPE_ALIASES |= {"fp64": "float64", "double": "float64"}


def read_reference(value: object, ignored: list[RecipeError]) -> ModelRef:
    """A model reference: `PATH[@REVISION][+ADAPTER[@REVISION]]` or the mapping form."""
    if isinstance(value, str):
        if value.startswith("model:"):
            do = f"write the model itself: {value.removeprefix('model:')}"
            raise RecipeError("'model:' before a model is an old spelling", found=repr(value), do=do)
        if value.strip("<>{}[] ") in ("...", "…", ""):
            raise RecipeError("the model is left out", found=repr(value), do="write a path or a Hub id")
        return ModelRef.parse(value)
    if isinstance(value, dict) and "merge_method" in value:
        return _read_nested(value)
    if isinstance(value, dict):
        if len(value) == 1 and None in value.values():
            do = "write the model's path or Hub id"
            raise RecipeError("a model's name was not filled in", found=f"{{{next(iter(value))}}}", do=do)
        reading = Reading(ignored=ignored)
        keys = parse(ReferenceKeys, value, reading)
        if keys and keys.lora and keys.model.adapter:
            found, do = f"{keys.model.adapter} and {keys.lora}", "drop 'lora:' or the part after '+'"
            reading.refuse(RecipeError("a model reference has two adapters", wanted="one", found=found, do=do))
        raise_all(reading.problems)
        assert keys is not None
        model, lora = keys.model, keys.lora
        adapter = (lora.path, lora.revision) if lora else (model.adapter, model.adapter_revision)
        return ModelRef(model.path, model.revision, *adapter, architecture=keys.override_architecture)
    do = "quote it" if isinstance(value, bool | int | float) else "write the model's path or Hub id"
    raise RecipeError("a model is text or a mapping", wanted="PATH[@REVISION][+ADAPTER]", found=kind_of(value), do=do)


def _read_nested(value: dict[str, Any]) -> ModelRef:
    """A whole recipe in a model's place; it is read as one when the models are opened."""
    given = value.get("name")
    name = given if isinstance(given, str) and given else f"({value['merge_method']})"
    return ModelRef(name, recipe=yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True), tree=value)


def _read_part(value: object, ignored: list[RecipeError]) -> ModelRef:
    if isinstance(value, str):
        return read_reference(value, ignored)
    reading = Reading(ignored=ignored)
    keys = parse(PathKeys, value, reading)
    raise_all(reading.problems)
    assert keys is not None
    return ModelRef(keys.path, keys.revision)


def _read_dtype(value: object, _: object) -> str | None:
    if value is None:
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else str(value)
    if CODES.get(name) in MERGEABLE:
        return CODES[name]
    why = " would destroy the weights" if name.startswith(("int", "uint", "bool")) else " is not a dtype to merge in"
    near = _DTYPE_ALIASES.get(name.lower()) or nearest(name, _DTYPE_NAMES)
    if name.lower().startswith(("int", "uint", "bool", "auto", "quant")):
        near = None
    do = f"write {near}" if near else "write one of them, or leave the key out to keep the models' dtype"
    raise RecipeError(f"{short(name)}{why}", wanted=", ".join(_DTYPE_NAMES), found=short(name), do=do)


def _read_layers(value: object, _: object) -> tuple[int, int]:
    wanted = "[first, end): two whole numbers, 0 <= first < end; layer numbers count from 0 and the end is left out"
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise RecipeError(
            "a layer_range is two whole numbers", wanted=wanted, found=short(str(value)), do="write [0, 32]"
        )
    start, end = value
    if start < 0 or end < 0:
        do = "write the number of layers of the model as the end: -1 does not count from the back"
        raise RecipeError("a layer_range is negative", wanted=wanted, found=f"[{start}, {end}]", do=do)
    if start > end or start == end != 0:
        do = f"write [{end}, {start}]" if start > end else f"write [{start}, {end + 1}] for the layer {start}"
        raise RecipeError("a layer_range holds no layer", wanted=wanted, found=f"[{start}, {end}]", do=do)
    return start, end


def _read_chat_template(value: object, _: object) -> str | None:
    if value is None or value == "auto" or value in CHAT_TEMPLATES:
        return value if isinstance(value, str) else None
    if isinstance(value, str) and len(value) >= 20 and "{" in value:
        return value
    near = nearest(value, ("auto", *CHAT_TEMPLATES)) if isinstance(value, str) else None
    raise RecipeError(
        "the chat_template cannot be used",
        wanted=f"auto, {', '.join(CHAT_TEMPLATES)}, or the text of a Jinja template",
        found=kind_of(value),
        do=f"write {near}" if near else "write one of these",
    )


def _read_multiple(value: object, _: object) -> int | None:
    if value is None:
        return None
    try:
        number = int(coerce(value, int))
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise RecipeError("pad_to_multiple_of is a whole number, at least 1", found=kind_of(value), do="write 64, say")
    return number


def _read_token_source(value: object, ignored: list[RecipeError]) -> ModelRef | TokenOfModel | str | None:
    if not isinstance(value, dict) or "kind" not in value:
        return None if value is None else read_reference(value, ignored)
    reading = Reading(ignored=ignored)
    keys = parse(TokenSourceKeys, value, reading)
    if keys and keys.kind not in ("zero", "model_token"):
        what = f"the kind {keys.kind!r} of a token's source is unknown"
        reading.refuse(RecipeError(what, wanted="model_token or zero", do="write one of them"), place(value, "kind"))
    if keys and keys.kind == "model_token" and (keys.model is None or (keys.token is None) == (keys.token_id is None)):
        what = "a model_token needs a model, and either a token or a token_id"
        found, do = ", ".join(map(str, value)), "write {kind: model_token, model: …, token: …}"
        reading.refuse(RecipeError(what, found=found, do=do), place(value))
    raise_all(reading.problems)
    assert keys is not None
    return TokenOfModel(keys.model, keys.token, keys.token_id) if keys.kind == "model_token" else "zero"


@dataclass(frozen=True)
class TokenOfModel:
    """A token of a model, by its text or its id."""

    model: ModelRef | None
    token: str | None
    token_id: int | None


def _read_parameters(value: Any, info: ValidationInfo) -> dict[str, Setting]:
    reading: Reading = info.context or Reading()
    if value is None:
        return {}
    if not isinstance(value, dict):
        error = RecipeError(
            "parameters are a mapping", wanted="NAME: VALUE lines", found=kind_of(value), do="indent them"
        )
        raise PydanticCustomError("plait", "refused", {"error": error})
    settings: dict[str, Setting] = {}
    problems: list[PlaitError] = []
    for name, raw in value.items():
        at, where = place(value, name), key_place(value, name)
        if name in RecipeKeys.model_fields and name != "parameters" and name != "name":
            do = "move it to the top level of the recipe"
            reading.ignore(f"{name!r} is not a parameter of a method but a key of the recipe", do, where)
            continue
        try:
            settings[name] = Setting.parse(raw, at, where)
        except PlaitError as error:
            for problem in error.problems if isinstance(error, Problems) else [error]:
                problem.what = f"{name}: {problem.what}"
                problems.append(problem)
    for raw in value.values():
        for condition in raw if isinstance(raw, list) else [raw]:
            for key in [k for k in condition if k not in ("filter", "value")] if isinstance(condition, dict) else []:
                do = "write 'filter'" if key in ("pattern", "name", "regex") else "the keys are filter, value"
                reading.ignore(f"{key!r} is not a key of a condition", do, key_place(condition, key))
    if problems:
        raise PydanticCustomError("plait", "refused", {"error": Problems(problems)})
    return settings


# -- the levels

_NUMBER_OR_TEXT = {"type": ["number", "boolean", "string"]}


def setting_schema(scalar: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a setting whose scalars fit `scalar`."""
    value = {"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]}
    text = {"type": ["string", "null"], "description": "part of a tensor's name, a glob with *, ? or [, or /regex/"}
    condition = {
        "type": "object",
        "properties": {"filter": text, "value": value},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [*value["anyOf"], condition, {"type": "array", "items": condition, "minItems": 1}]}


def _text_schema(words: tuple[str, ...] = (), **more: Any) -> WithJsonSchema:
    options: list[Any] = [{"enum": list(words)}] if words else []
    return WithJsonSchema({"anyOf": [*options, {"type": "string"}, {"type": "null"}], **more})


_REFERENCE = {
    "anyOf": [
        {"type": "string", "description": "PATH[@REVISION][+ADAPTER[@REVISION]]: a local path or a Hub id"},
        {
            "type": "object",
            "description": "{model: {path, revision}, lora: {path, revision}, override_architecture}, or a whole recipe",
        },
    ]
}
Reference = Annotated[ModelRef, reader(read_reference), WithJsonSchema(_REFERENCE)]
DTypeName = Annotated[
    str | None,
    reader(_read_dtype),
    WithJsonSchema({"enum": [*_DTYPE_NAMES, *(f"torch.{name}" for name in _DTYPE_NAMES), None]}),
]
LayerRange = Annotated[
    tuple[int, int],
    reader(_read_layers),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}),
]
Parameters = Annotated[
    dict[str, Setting],
    PlainValidator(_read_parameters),
    WithJsonSchema({"type": ["object", "null"], "additionalProperties": setting_schema(_NUMBER_OR_TEXT)}),
]
TokenizerSource = Annotated[
    ModelRef | str,
    reader(lambda value, ignored: value if value in ("union", "base") else read_reference(value, ignored)),
    WithJsonSchema({"anyOf": [{"enum": ["union", "base"]}, *_REFERENCE["anyOf"]]}),
]


class PathKeys(Keys):
    level = "a model's path"
    path: str = Field(description="a local path or a Hub id, taken as it is")
    revision: str | None = Field(None, description="a branch, tag or commit")


class ReferenceKeys(Keys):
    level = "a model reference"
    model: Annotated[ModelRef, reader(_read_part)] = Field(description="the model")
    lora: Annotated[ModelRef, reader(_read_part)] | None = Field(None, description="an adapter to apply to it")
    override_architecture: str | None = Field(None, description="replaces `architectures` of the model's config")


class TokenSourceKeys(Keys):
    level = "a token's source"
    kind: str = Field(description="model_token or zero")
    model: Reference | None = Field(None, description="the model whose token is meant")
    token: str | None = Field(None, description="the token's text")
    token_id: int | None = Field(None, ge=0, description="the token's id")


class TokenKeys(Keys):
    level = "a token"
    source: Annotated[Any, reader(_read_token_source)] = Field(None, description="where the token's row comes from")
    force: bool = Field(False, description="use that row for every model, even for those that have the token")


class TokenizerKeys(Keys):
    level = "the tokenizer"
    source: TokenizerSource = Field("union", description="union, base, or the model whose tokenizer is used")
    tokens: dict[str, TokenKeys] | None = Field(None, description="rules for single tokens")
    pad_to_multiple_of: Annotated[int | None, reader(_read_multiple)] = Field(
        None, description="round the vocabulary size up to a multiple of this"
    )


class ModelKeys(Keys):
    level = "a model's entry"
    mends: ClassVar = {
        "layer_range": "write the model under slices: → sources: to choose its layers",
        "revision": "write it after the model: MODEL@REVISION",
        "lora": "write it after the model: MODEL+ADAPTER",
        "base_model": "move it to the top level of the recipe",
    }
    model: Reference = Field(description="a local path or a Hub id: PATH[@REVISION][+ADAPTER[@REVISION]]")
    parameters: Parameters = Field({}, description="settings for this model")


class SourceKeys(ModelKeys):
    level = "a slice's source"
    layer_range: LayerRange = Field(description="[first, end): the layers of this model, counted from 0")


class SliceKeys(Keys):
    level = "a slice"
    sources: list[SourceKeys] = Field(description="the models whose layers make this slice, all of the same number")
    base_model: Reference | None = Field(None, description="the base for this slice, instead of the recipe's")
    parameters: Parameters = Field({}, description="settings for this slice")
    residual_weight: Any = Field(None, description="accepted and not used, as in mergekit")


_LAYERS = {"type": ["integer", "string"], "description": "a layer of the output, or first-last, both included"}
_WORDS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_KIND = {"anyOf": [{"enum": [*KINDS]}, {"type": "array", "items": {"enum": [*KINDS]}, "minItems": 1}]}
_WHEN = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "part of a tensor's name, a glob with *, ? or [, or /regex/"},
        "layer": {"anyOf": [_LAYERS, {"type": "array", "items": _LAYERS, "minItems": 1}]},
        "kind": _KIND,
        "module": _WORDS,
    },
    "additionalProperties": False,
    "minProperties": 1,
}
_BRICK = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": ["object", "null"]}}]}
Bricks = Annotated[
    tuple[BrickUse, ...] | None,
    reader(read_bricks),
    WithJsonSchema({"anyOf": [*_BRICK["anyOf"], {"type": "array", "items": _BRICK}, {"type": "null"}]}),
]


class RuleKeys(Keys):
    level = "a rule"
    mends: ClassVar = {"method": "write 'merge_method'", "if": "write 'when'", "then": "write its keys beside 'when'"}
    when: Annotated[When, reader(read_when), WithJsonSchema(_WHEN)] = Field(description="which tensors it is for")
    merge_method: str | None = Field(None, description="their method, instead of the recipe's")
    copy_from: Annotated[ModelRef | str | None, reader(read_copy), _text_schema(("base",))] = Field(
        None, alias="copy", description="take them as they are from the base or from a model"
    )
    parameters: Parameters = Field({}, description="settings for them, before all others")
    pre: Bricks = Field(None, description="bricks before the method, instead of the recipe's")
    post: Bricks = Field(None, description="bricks after the method, instead of the recipe's")


class ModuleKeys(Keys):
    level = "a module"
    mends: ClassVar = dict.fromkeys(("base_model", "dtype"), "write it at the top level: it holds for all modules")
    merge_method: str | None = Field(None, description="this module's method, instead of the recipe's")
    models: list[ModelKeys] | None = Field(None, description="the models, whole")
    slices: list[SliceKeys] | None = Field(None, description="the output's layers, slice by slice")
    parameters: Parameters = Field({}, description="settings for this module")


class RecipeKeys(Keys):
    level = "a recipe"
    mends: ClassVar = {
        "method": "did you mean 'merge_method'?",
        "base": "did you mean 'base_model'?",
        "sources": "sources stand under 'slices:'; a list of whole models is 'models:'",
        "layer_range": "it belongs to a source: slices: → sources:",
        "density": "put it under 'parameters:', of each model or at the top level",
        "weight": "put it under 'parameters:', of each model or at the top level",
    }
    merge_method: str = Field(description="how the models are merged")
    models: list[ModelKeys] | None = Field(None, description="the models, whole")
    slices: list[SliceKeys] | None = Field(None, description="the output's layers, slice by slice")
    modules: dict[str, ModuleKeys] | None = Field(None, description="for models of several parts: each part's models")
    base_model: Reference | None = Field(None, description="the model that the others are compared with")
    dtype: DTypeName = Field(None, description="dtype of the merged weights")
    out_dtype: DTypeName = Field(None, description="dtype in which they are written, when it differs")
    parameters: Parameters = Field({}, description="settings for the whole merge")
    rules: list[RuleKeys] | None = Field(None, description="the first that fits a tensor says how it is made")
    otherwise: Annotated[Otherwise | None, reader(read_otherwise), _text_schema(("default", "error", "copy base"))] = (
        Field(None, description="tensors that no rule fits: default (this recipe's method), copy base, error")
    )
    pre: Bricks = Field(
        None, description="bricks before the method: what happens to each model's difference to the base"
    )
    post: Bricks = Field(None, description="bricks after the method: what happens to the merged difference")
    tokenizer: TokenizerKeys | None = Field(None, description="how the vocabularies are united")
    tokenizer_source: TokenizerSource | None = Field(None, description="older spelling of tokenizer: {source: …}")
    chat_template: Annotated[str | None, reader(_read_chat_template), _text_schema(("auto", *CHAT_TEMPLATES))] = Field(
        None, description="auto, a shipped template's name, or a template's text"
    )
    name: str | None = Field(None, description="a name for this merge, by which later ones in the same file call it")
