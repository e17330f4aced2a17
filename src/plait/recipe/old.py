"""Recipes of older tools, in the language of today: layer slices of bakllama, flags of mergekit-legacy, written-out forms.

What mergekit writes beside its models is its internal form: every reference a mapping with nulls, every setting a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from plait.errors import RecipeError
from plait.recipe.document import place

_REFERENCES = ("model", "base_model", "source_model")
_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
#: of mergekit-legacy's flags, if none is named
METHOD = "ties"
#: keys that no version of mergekit has used
_IDLE = ("residual_weight",)


def modern(tree: Any) -> tuple[dict[str, Any], list[str]]:
    """(the recipe, what to tell of it) for one document of any older form; raises `RecipeError` for what is none."""
    if not isinstance(tree, dict):
        found, do = type(tree).__name__, "check that the file is a recipe"
        raise RecipeError("this is no recipe", wanted="a mapping with keys", found=found, do=do)
    notes: list[str] = []
    made = _bakllama(tree, notes) if "layer_slices" in tree else _plain(tree, notes)
    return made, list(dict.fromkeys(notes))


def _plain(value: Any, notes: list[str], key: str = "") -> Any:
    """The same without nulls, written-out references and settings, old spellings."""
    if key in _REFERENCES and value is not None and not isinstance(value, list):
        return _reference(value)
    if key in ("dtype", "out_dtype") and isinstance(value, str):
        name = value.removeprefix("torch.")
        return _DTYPES.get(name, name)
    if isinstance(value, Mapping):
        found = {k: _plain(v, notes, k) for k, v in value.items() if v is not None and k not in _IDLE}
        notes += [f"{k} had no effect, and is left out" for k in _IDLE if value.get(k) is not None]
        if "tokenizer_source" in found and "tokenizer" not in found:
            source = found.pop("tokenizer_source")
            found["tokenizer"] = {"source": source if source in ("union", "base") else _reference(source)}
        return found
    if isinstance(value, list):
        items = [_plain(item, notes) for item in value]
        only = items[0] if len(items) == 1 else None
        return only["value"] if isinstance(only, dict) and only.keys() == {"value"} else items
    return value


def _reference(value: Any) -> Any:
    """`{model: {path: x, revision: null}, lora: null, …}` -> `x`."""
    if isinstance(value, str):
        return value.removeprefix("model:")
    if not isinstance(value, Mapping) or "merge_method" in value or "model" not in value:
        return _plain(value, []) if isinstance(value, Mapping) and "path" not in value else _path(value)
    text, lora = _path(value["model"]), value.get("lora")
    if lora is not None:
        text = f"{text}+{_path(lora)}"
    odd = value.get("override_architecture")
    return {"model": {"path": text}, "override_architecture": odd} if odd else text


def _path(value: Any) -> str:
    if isinstance(value, Mapping):
        revision = value.get("revision")
        return f"{value.get('path')}" + (f"@{revision}" if revision else "")
    return str(value)


def _bakllama(tree: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """`layer_slices` as passthrough slices; the end of a slice is left out in both."""
    known = ("layer_slices", "embedding_source", "lm_head_source")
    if unknown := [key for key in tree if key not in known]:
        raise RecipeError(
            f"a bakllama file has no {unknown[0]!r}",
            wanted=", ".join(known),
            found=unknown[0],
            do="delete it, or write one of these",
            where=place(tree),
        )
    slices = []
    for piece in tree["layer_slices"] if isinstance(tree["layer_slices"], list) else [None]:
        entry: Mapping[str, Any] = piece if isinstance(piece, Mapping) else {}
        numbers = [entry.get(key) for key in ("start", "end")]
        if not all(isinstance(n, int) for n in numbers) or not isinstance(entry.get("model"), str):
            wanted = "{model: …, start: 0, end: 16}, with scale: if wanted"
            raise RecipeError(
                "a layer slice cannot be read",
                wanted=wanted,
                found=str(piece)[:80],
                do="give the model as text, and start and end as whole numbers",
                where=place(piece),
            )
        source: dict[str, Any] = {"model": _reference(entry["model"]), "layer_range": numbers}
        if entry.get("scale") is not None:
            scaled = [{"filter": name, "value": entry["scale"]} for name in ("o_proj", "down_proj")]
            source["parameters"] = {"scale": [*scaled, {"value": 1.0}]}
            notes.append("scale is written for o_proj and down_proj, through which a layer adds to the stream")
        slices.append({"sources": [source]})
    if not slices:
        what, do = "there are no layer slices", "list at least one"
        raise RecipeError(what, wanted="layer_slices: [{model, start, end}, …]", found="none", do=do)
    for key, piece in (("embedding_source", slices[0]), ("lm_head_source", slices[-1])):
        mine = piece["sources"][0]["model"]
        if tree.get(key) is not None and _reference(tree[key]) != mine:
            raise RecipeError(
                f"{key} cannot be another model than that of the slice beside it",
                wanted=mine,
                found=str(tree[key]),
                do="leave it out, or begin (or end) with a slice of that model",
                where=place(tree),
            )
    return {"merge_method": "passthrough", "slices": slices}


def of_flags(
    models: Sequence[str],
    method: str,
    known: Collection[str],
    base: str | None,
    each: Mapping[str, Sequence[float]],
    shared: Mapping[str, Any],
    dtype: str | None,
) -> dict[str, Any]:
    """The recipe of mergekit-legacy's flags. One value in `each` is for all models, several are theirs by position.

    `known`: the method's parameters; others, and None, are left out. A weight that is not given is 1. slerp takes two models
    and one weight, which is its t. Raises `RecipeError` for numbers that do not fit.
    """
    head: dict[str, Any] = {"merge_method": method, **({"base_model": base} if base else {})}
    tail = {"dtype": dtype} if dtype else {}
    if method == "slerp":
        weights = each.get("weight", ())
        models = [*models, base] if base and len(models) == 1 and base not in models else models
        if len(models) != 2 or len(weights) != 1:
            found = f"{len(models)} models, {len(weights)} weights"
            raise RecipeError(
                "slerp has two models and one weight",
                wanted="--merge A --merge B --weight T",
                found=found,
                do="give it so, or choose another --method",
            )
        named = [{"model": model} for model in models]
        return {**head, "base_model": base or models[0], "models": named, "parameters": {"t": weights[0]}, **tail}
    parameters = {name: value for name, value in shared.items() if value is not None and name in known}
    entries: list[dict[str, Any]] = [{"model": model} for model in models]
    for name, given in each.items():
        values = given or ((1.0,) if name == "weight" else ())
        if name not in known:
            continue
        if len(values) == 1:
            parameters[name] = values[0]
        elif len(values) == len(models):
            for entry, value in zip(entries, values, strict=True):
                entry.setdefault("parameters", {})[name] = value
        elif values:
            found = f"{len(models)} models, {len(values)} values"
            what, do = f"--{name} does not fit", f"pass --{name} once, or once for each model, in their order"
            raise RecipeError(what, wanted="one value, or one for each --merge", found=found, do=do)
    return {**head, "models": entries, **({"parameters": parameters} if parameters else {}), **tail}
