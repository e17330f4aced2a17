"""The recipe: a checked YAML file in plait's nouns.

    recipe = load("merge.yaml")
    recipe.models[0].parameters["weight"].evaluate("model.layers.3.mlp.up_proj.weight", t=0.1, kind=float)

Everything that can be known without the methods and without the models is checked here, and all problems are raised
together, each with its line. What the merge method wants is checked in `fit`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

import yaml

from plait.errors import RecipeError, Where
from plait.recipe import document
from plait.recipe import keys as k
from plait.recipe.document import place
from plait.recipe.grammar import Reading, kind_of, parse
from plait.recipe.rules import DEFAULT, BrickUse, Otherwise, Rule
from plait.recipe.setting import Setting
from plait.types import ModelRef

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Source:
    """A model that takes part; `layers` is [first, end), or None for the whole model (an entry of `models:`).

    `listed` is false for a base that takes part although it does not stand among the models.
    """

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)
    where: Where | None = field(default=None, compare=False)
    listed: bool = True


@dataclass(frozen=True)
class Slice:
    """Some of the output's layers, made of equally many layers of each source; `base` replaces the recipe's.

    `method` is its module's, or the recipe's; None until `Recipe.resolved` has filled it in.
    """

    sources: tuple[Source, ...]
    base: ModelRef | None = None
    parameters: Settings = field(default_factory=dict)
    where: Where | None = field(default=None, compare=False)
    method: str | None = None


@dataclass(frozen=True)
class ModulePart:
    """How one part of a model of several parts is made; exactly one of `models` and `slices` is given."""

    models: tuple[Source, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    parameters: Settings = field(default_factory=dict)
    where: Where | None = field(default=None, compare=False)
    method: str | None = None


@dataclass(frozen=True)
class TokenRule:
    """Where a token's row comes from.

    `source` "model": the row of the same token in `model`; "token": the row of `token` or `token_id` in `model`; "zero":
    zeros; "default": whatever holds for tokens without a rule. `force` replaces the rows of models that have the token.
    """

    source: Literal["default", "model", "token", "zero"] = "default"
    model: ModelRef | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False
    where: Where | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TokenizerRequest:
    """Which vocabulary the output gets: "union", "base" (the base model's), or that of a model."""

    source: ModelRef | str = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe; exactly one of `models`, `slices` and `modules` is given and it is not empty.

    `dtype` and `out_dtype` are safetensors codes ("BF16"). `text` is the file as it was read (of a mapping: a YAML dump),
    `path` its name, `warnings` what was passed over in a lenient reading.
    """

    method: str
    models: tuple[Source, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    modules: Mapping[str, ModulePart] | None = None
    base: ModelRef | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    parameters: Settings = field(default_factory=dict)
    tokenizer: TokenizerRequest | None = None
    chat_template: str | None = None
    name: str | None = None
    rules: tuple[Rule, ...] = ()
    otherwise: Otherwise = DEFAULT
    pre: tuple[BrickUse, ...] = ()
    post: tuple[BrickUse, ...] = ()
    text: str = field(default="", compare=False, repr=False)
    path: str | None = field(default=None, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    tree: Any = field(default=None, compare=False, repr=False)

    def at(self, *path: str | int) -> Where | None:
        """The place of a value, by keys and list indices: `at("models", 0, "parameters")`; None without a text."""
        return place(self.tree, *path)

    def parts(self) -> Iterator[tuple[str | None, ModulePart]]:
        """(module name, its part) in order; a recipe without `modules:` is one part, whose name is None."""
        if self.modules is not None:
            yield from self.modules.items()
        else:
            yield None, ModulePart(self.models, self.slices)

    def resolved(self) -> Iterator[tuple[str | None, Slice, tuple[Settings, ...]]]:
        """(module, slice, scopes) for each slice of the output, whichever way it is written.

        `models:` is one slice of whole models, to which the base is added as the last source when it is not among them; a
        slice's own sources stay as they are. `base` is the slice's own or the recipe's. The scopes are the settings of the
        slice, the module and the recipe: a parameter is looked for in the source's own settings, then in these in order.
        """
        for module, part in self.parts():
            method = part.method or self.method
            for piece in part.slices or ():
                scopes = piece.parameters, part.parameters, self.parameters
                yield module, replace(piece, base=piece.base or self.base, method=method), scopes
            if part.models:
                there = any(source.model == self.base for source in part.models)
                unlisted = Source(self.base, where=self.at("base_model"), listed=False) if self.base else None
                added = () if there or unlisted is None else (unlisted,)
                whole = Slice((*part.models, *added), self.base, where=part.models[0].where, method=method)
                yield module, whole, (whole.parameters, part.parameters, self.parameters)

    def references(self) -> tuple[ModelRef, ...]:
        """Every model that the recipe names, once: sources and the slices' bases in order, the base, the tokenizer's."""
        found: list[ModelRef | str | None] = []
        for _, part in self.parts():
            found += [source.model for source in part.models or ()]
            for piece in part.slices or ():
                found += [*(source.model for source in piece.sources), piece.base]
        found.append(self.base)
        found += [self.otherwise.model, *(rule.copy for rule in self.rules)]
        if self.tokenizer:
            found += [self.tokenizer.source, *(rule.model for rule in self.tokenizer.tokens.values())]
        return tuple(dict.fromkeys(ref for ref in found if isinstance(ref, ModelRef)))

    def with_references(self, names: Mapping[ModelRef, ModelRef]) -> Recipe:
        """The same recipe with other models in the place of some."""
        return _with(self, names)

    def methods(self) -> dict[str, Where | None]:
        """Every merge method that the recipe names, with the place where it does so first; its own in front."""
        found = {self.method: self.at("merge_method")}
        for name, part in (self.modules or {}).items():
            if part.method:
                found.setdefault(part.method, self.at("modules", name, "merge_method"))
        for i, rule in enumerate(self.rules):
            if rule.method:
                found.setdefault(rule.method, self.at("rules", i, "merge_method"))
        return found

    def bricks(self) -> Iterator[tuple[str, BrickUse]]:
        """("pre" or "post", use) of every brick that the recipe names."""
        for pre, post in ((self.pre, self.post), *((rule.pre, rule.post) for rule in self.rules)):
            yield from (("pre", use) for use in pre or ())
            yield from (("post", use) for use in post or ())


T = TypeVar("T")


def _with(part: T, names: Mapping[ModelRef, ModelRef]) -> T:
    """A part of a recipe with the models in it replaced."""
    new: Any = part
    if isinstance(part, ModelRef):
        new = names.get(part, part)
    elif isinstance(part, tuple):
        new = tuple(_with(each, names) for each in part)
    elif isinstance(part, dict):
        new = {key: _with(each, names) for key, each in part.items()}
    elif isinstance(part, Recipe | Source | Slice | ModulePart | TokenRule | TokenizerRequest | Rule | Otherwise):
        inner = [field.name for field in fields(part) if field.name != "tree"]
        new = replace(part, **{name: _with(getattr(part, name), names) for name in inner})
    return cast(T, new)


def load(source: str | os.PathLike[str] | Mapping[str, Any], *, lenient: bool = False) -> Recipe:
    """Read and check a recipe: a path, a text (a str with a newline in it) or a mapping.

    `lenient` passes over the keys that mergekit ignores, with a warning for each. Raises `RecipeError`, `ModelError` or,
    for several, `Problems`.
    """
    if isinstance(source, Mapping):
        tree = document.plain(source)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return build(tree, text, None, lenient=lenient)
    path, text = open_text(source)
    documents = document.parse(text, path or "recipe")
    if len(documents) > 1:
        raise RecipeError(
            f"that file holds {len(documents)} recipes (a merge in several stages)",
            wanted="one recipe",
            found="several documents, separated by '---'",
            do="split it into one file for each stage, and merge them in order",
            where=place(documents[1]),
        )
    return build(documents[0] if documents else None, text, path, lenient=lenient)


def open_text(source: str | os.PathLike[str]) -> tuple[str | None, str]:
    """(path, text) of a source: a str with a newline in it is the text itself and has no path."""
    if isinstance(source, str) and "\n" in source:
        return None, source
    return os.fspath(source), document.read(source)


def build(tree: object, text: str, path: str | None, *, lenient: bool = False) -> Recipe:
    """The recipe that one document holds. Raises as `load` does."""
    if not isinstance(tree, dict):
        do = "write 'merge_method:', 'models:' and so on, one a line"
        where = place(tree) or (Where(path) if path else None)
        raise RecipeError("a recipe is a mapping", found=kind_of(tree), do=do, where=where)
    reading = Reading(lenient)
    _one_of(tree, ("models", "slices", "modules"), "the recipe", reading)
    if tree.get("tokenizer") is not None and tree.get("tokenizer_source") is not None:
        what, do = "tokenizer and tokenizer_source are both given", "keep 'tokenizer: {source: …}' alone"
        error = RecipeError(what, wanted="one of them", found="both", do=do)
        reading.refuse(error, place(tree, "tokenizer_source"))
    for name, module in tree["modules"].items() if isinstance(tree.get("modules"), dict) else ():
        if isinstance(module, dict):
            _one_of(module, ("models", "slices"), f"the module {name!r}", reading)
    keys = parse(k.RecipeKeys, tree, reading)
    if keys is None:
        reading.conclude()
        raise AssertionError("nothing was read, and nothing was wrong")
    models, modules = _models(keys.models, reading), _modules(keys.modules, reading)
    slices = _slices(keys.slices, reading)
    for source in (s for piece in slices or () for s in piece.sources):
        if source.layers == (0, 0):
            what = "a layer_range holds no layer"
            reading.refuse(RecipeError(what, found="[0, 0]", do="write [0, 32], say", where=source.where))
    return Recipe(
        keys.merge_method,
        models,
        slices,
        modules,
        keys.base_model,
        keys.dtype,
        keys.out_dtype,
        keys.parameters,
        _tokenizer(keys),
        keys.chat_template,
        keys.name,
        tuple(_rule(rule, reading) for rule in keys.rules or ()),
        _otherwise(keys, reading),
        keys.pre or (),
        keys.post or (),
        text,
        path,
        reading.conclude(),
        tree,
    )


def _one_of(tree: dict[str, Any], keys: Sequence[str], what: str, reading: Reading) -> None:
    given = [key for key in keys if tree.get(key)]
    empty = [key for key in keys if key in tree and not tree[key]]
    if len(given) == 1:
        return
    names = " or ".join([", ".join(keys[:-1]), keys[-1]])
    error = RecipeError(
        f"{what} needs exactly one of {names}",
        found=" and ".join(given) or (f"{empty[0]!r} is empty" if empty else "none of them"),
        do="keep one of them" if given else "list the models under 'models:'",
    )
    where = place(tree, given[1]) if given else place(tree, empty[0]) if empty else place(tree)
    reading.refuse(error, where)


def _distinct(sources: Iterable[Source], reading: Reading) -> tuple[Source, ...]:
    seen: dict[ModelRef, Source] = {}
    for source in (sources := tuple(sources)):
        first = seen.setdefault(source.model, source)
        if first is not source:
            line = f"first on line {first.where.line}" if first.where else "twice"
            do = "list each model once, and give it the sum of the weights"
            reading.refuse(RecipeError(f"{source.model} stands twice in one slice", found=line, do=do), source.where)
    return sources


def _source(keys: k.ModelKeys) -> Source:
    layers = keys.layer_range if isinstance(keys, k.SourceKeys) else None
    return Source(keys.model, layers, keys.parameters, keys.where)


def _models(entries: list[k.ModelKeys] | None, reading: Reading) -> tuple[Source, ...] | None:
    return _distinct(map(_source, entries), reading) if entries else None


def _slices(entries: list[k.SliceKeys] | None, reading: Reading) -> tuple[Slice, ...] | None:
    return tuple(_slice(entry, reading) for entry in entries) if entries else None


def _slice(keys: k.SliceKeys, reading: Reading) -> Slice:
    if not keys.sources:
        reading.refuse(
            RecipeError("a slice has no sources", found="none", do="list {model: …, layer_range: […]} entries"),
            keys.where,
        )
    sources = _distinct(map(_source, keys.sources), reading)
    lengths = [end - start for start, end in (source.layers or (0, 0) for source in sources)]
    for source, length in zip(sources, lengths, strict=True):
        if length != lengths[0]:
            wanted = f"{lengths[0]} layers, as {sources[0].model} has"
            error = RecipeError(
                "the sources of a slice differ in length",
                wanted=wanted,
                found=f"{length} layers of {source.model}",
                do="give each source of a slice a layer_range of the same length",
            )
            reading.refuse(error, source.where)
    return Slice(sources, keys.base_model, keys.parameters, keys.where)


def _modules(entries: Mapping[str, k.ModuleKeys] | None, reading: Reading) -> Mapping[str, ModulePart] | None:
    if not entries:
        return None
    parts = {
        name: ModulePart(
            _models(keys.models, reading), _slices(keys.slices, reading), keys.parameters, keys.where, keys.merge_method
        )
        for name, keys in entries.items()
    }
    return parts


def _rule(keys: k.RuleKeys, reading: Reading) -> Rule:
    if keys.copy_from is not None and (keys.merge_method or keys.parameters or keys.pre or keys.post):
        do = "keep 'copy', or the method and what belongs to it"
        reading.refuse(
            RecipeError("a rule copies, or it merges", wanted="one of them", found="both", do=do), keys.where
        )
    return Rule(keys.when, keys.merge_method, keys.copy_from, keys.parameters, keys.pre, keys.post, keys.where)


def _otherwise(keys: k.RecipeKeys, reading: Reading) -> Otherwise:
    if keys.otherwise and not keys.rules:
        reading.ignore("'otherwise' without rules changes nothing", "add 'rules:', or delete it", keys.where)
    return keys.otherwise or DEFAULT


def _tokenizer(keys: k.RecipeKeys) -> TokenizerRequest | None:
    if keys.tokenizer_source is not None:
        return TokenizerRequest(keys.tokenizer_source)
    if keys.tokenizer is None:
        return None
    tokens = {token: _token(rule) for token, rule in (keys.tokenizer.tokens or {}).items()}
    return TokenizerRequest(keys.tokenizer.source, tokens, keys.tokenizer.pad_to_multiple_of)


def _token(keys: k.TokenKeys) -> TokenRule:
    source, force, where = keys.source, keys.force, keys.where
    if isinstance(source, k.TokenOfModel):
        return TokenRule("token", source.model, source.token, source.token_id, force, where)
    if isinstance(source, ModelRef):
        return TokenRule("model", source, force=force, where=where)
    return TokenRule("zero" if source == "zero" else "default", force=force, where=where)
