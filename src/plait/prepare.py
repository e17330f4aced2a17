"""From a recipe to a plan: its text, its models, what they have in common; no weight is read."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait import arch, fit
from plait.align import aligned
from plait.checkpoint import notes as notes_of
from plait.checkpoint.directory import AdapterAlone
from plait.checkpoint.source import Opened, adapted, fetched, local_path, open_model
from plait.errors import PlaitError, Problems, RecipeError, Where, raise_all
from plait.layout import SHARD_SIZE
from plait.merged import Merge
from plait.output.sidefiles import side_files
from plait.plan import Input, Options, Plan, make_plan
from plait.recipe import Recipe, kinds, load
from plait.recipe.load import build
from plait.strands import Model
from plait.types import CODES, DTYPES, MERGEABLE, ModelRef
from plait.vocabulary.shared import one_vocabulary, unlike

Source = str | os.PathLike[str] | Mapping[str, Any]
#: what a stage's name stands for: a recipe that is streamed, or the folder of one that has been written
Stage = Recipe | Path
#: model reference as the recipe has it -> commit of the model, commit of its adapter
Pins = Mapping[str, tuple[str | None, str | None]]


def prepare(
    source: Source | Recipe,
    *,
    lenient: bool = False,
    shard_size: int = SHARD_SIZE,
    allow_crimes: bool = False,
    truncate_embeddings: bool = False,
    seed: int | None = None,
    expert_layout: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    lora_merge_dtype: str | None = None,
    stages: Mapping[str, Stage] | None = None,
    relative_to: Path | None = None,
    pins: Pins | None = None,
) -> Plan:
    """Read and check a recipe, open its models (headers only), and plan the merge; raises every problem that is found.

    `stages` are names that stand for recipes, or for folders; by default those of the other documents in the same file.
    `relative_to`: where relative paths start that do not from the current directory; by default beside the recipe.
    `pins`: model -> the commits, of itself and of its adapter, that are meant by it now.
    """
    with _many_small_records():
        return _prepared(
            source,
            lenient,
            Options(shard_size, allow_crimes, truncate_embeddings, seed, expert_layout, lora_merge_dtype, lenient),
            cache,
            lora_merge_dtype,
            stages,
            relative_to,
            pins,
        )


def _prepared(
    source: Source | Recipe,
    lenient: bool,
    options: Options,
    cache: str | os.PathLike[str] | None,
    lora_merge_dtype: str | None,
    given: Mapping[str, Stage] | None,
    relative_to: Path | None,
    pins: Pins | None,
) -> Plan:
    recipe, beside = (source, {}) if isinstance(source, Recipe) else _recipe(source, lenient)
    stages = beside if given is None else given
    within = (os.path.realpath(recipe.path),) if recipe.path else ()
    preparing = Preparing(
        lenient, options, Path(cache) if cache else None, rounding(lora_merge_dtype), stages, relative_to, pins or {}
    )
    plan = preparing.plan(recipe, within)
    left = ", ".join(name for name in beside if name not in preparing.used)
    return plan.with_notes([f"stages that the last one does not need are not made: {left}"]) if left else plan


@dataclass(frozen=True)
class Preparing:
    """From recipes to plans; a model that is itself a recipe, or a stage of the same file, is planned first and then streamed."""

    lenient: bool
    options: Options
    cache: Path | None
    lora_dtype: str | None
    stages: Mapping[str, Stage]
    relative_to: Path | None = None
    pins: Pins = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def plan(self, recipe: Recipe, within: tuple[str, ...]) -> Plan:
        """`within`: the recipes that this one is a part of, itself the last."""
        problems, warnings = fit.problems(recipe, lenient=self.lenient)
        raise_all(problems)
        models: list[Model] = []
        nested: list[Plan] = []
        alone: dict[ModelRef, ModelRef] = {}
        adapters: list[str] = []
        for ref in recipe.references():
            try:
                opened, inner = self.open(ref, recipe, within)
                nested += [inner] if inner else []
                models.append(Model(opened, arch.infer(opened.checkpoint.specs, opened.checkpoint.config)))
            except AdapterAlone as error:
                base = _under(ref, recipe, error.base)
                if base is None:
                    problems.append(error)
                else:
                    alone[ref] = replace(base, adapter=ref.path, adapter_revision=ref.revision)
                    names = f"; its adapter_config.json names {error.base}" if error.base else ""
                    adapters.append(f"{ref} is an adapter, and is read over {base}{names}")
            except PlaitError as error:
                problems += error.problems if isinstance(error, Problems) else [error]
        raise_all(problems)
        if alone:
            over = recipe.with_references(alone)
            return self.plan(replace(over, warnings=(*over.warnings, *adapters)), within)
        if recipe.tokenizer is not None or _tokens_differ(models):
            for model in models:
                fetched(model.opened, None, side_files=True)
        views = [f"{model.ref}: {note}" for model in models for note in notes_of(model.opened.checkpoint)]
        models, told = aligned(
            recipe,
            models,
            allow_crimes=self.options.allow_crimes,
            truncate_embeddings=self.options.truncate_embeddings,
            expert_layout=self.options.expert_layout,
        )
        models, vocabulary = one_vocabulary(recipe, models, self.options.truncate_embeddings)
        plan = make_plan(recipe, models, self.options).with_vocabulary(vocabulary)
        rows = dict.fromkeys(
            i.model for step in plan.steps if step.layer is None for i in step.sources() if _by_token(models, i)
        )
        unlikely = () if vocabulary or not rows else unlike([models[i] for i in rows])
        notes = (*recipe.warnings, *warnings, *views, *told, *unlikely, *side_files(plan).notes)
        return replace(plan.with_notes(notes), nested=tuple(nested))

    def open(self, ref: ModelRef, recipe: Recipe, within: tuple[str, ...]) -> tuple[Opened, Plan | None]:
        """The model, and its plan if it is a merge."""
        beside = self.relative_to or (Path(recipe.path).parent if recipe.path else None)
        folder = self.stages.get(ref.path) if ref.revision is None else None
        nested = None
        if isinstance(folder, Path):
            self.used.add(ref.path)
            meant = replace(ref, path=str(folder))
        else:
            nested = self.nested(ref, beside)
            revision, adapter = self.pins.get(str(ref), (ref.revision, ref.adapter_revision))
            meant = replace(ref, revision=revision, adapter_revision=adapter)
        if nested is None:
            fetch = isinstance(folder, Path)
            opened = open_model(meant, cache=self.cache, relative_to=beside, lora_dtype=self.lora_dtype, fetch=fetch)
            return replace(opened, ref=ref), None
        inner, name = nested
        if name in within:
            circle = " -> ".join((*within[within.index(name) :], name))
            do = "a merge cannot be one of its own models: break the circle"
            raise RecipeError("the recipes need each other", found=circle, do=do, where=recipe.at("merge_method"))
        if ref.architecture:
            do = "write the merge to a directory, and give its path"
            raise RecipeError("override_architecture is for models, not for recipes", found=name, do=do)
        plan = self.plan(inner, (*within, name))
        itself = [Path(name)] if os.path.isabs(name) else []
        files = dict.fromkeys([*itself, *(path for model in plan.models for path in model.opened.files)])
        merge, donor = Merge(plan), plan.models[plan.donor].opened
        beside_it = merge.folder()
        repo = donor.repo if beside_it == donor.folder else None
        opened = Opened(ref, beside_it, None, merge, tuple(files), repo=repo)
        return adapted(opened, cache=self.cache, relative_to=beside, lora_dtype=self.lora_dtype), plan

    def nested(self, ref: ModelRef, beside: Path | None) -> tuple[Recipe, str] | None:
        """The recipe that stands in a model's place, and what tells it from others."""
        if ref.recipe is not None:
            path = str(beside / "…") if beside else None  # relative paths in it mean what they mean around it
            return build(ref.tree, ref.recipe, path, lenient=self.lenient), ref.recipe
        stage = self.stages.get(ref.path) if ref.revision is None else None
        if isinstance(stage, Recipe):
            self.used.add(ref.path)
            return stage, ref.path
        file = local_path(ref.path, beside) if ref.path.endswith((".yml", ".yaml")) else None
        if file is None or not file.is_file():
            return None
        return load(file, lenient=self.lenient), os.path.realpath(file)


def _under(adapter: ModelRef, recipe: Recipe, stated: str | None) -> ModelRef | None:
    """The model that an adapter which stands alone is read over: the recipe's base, else the one that it names itself."""
    if recipe.base and recipe.base != adapter and not recipe.base.adapter:
        return recipe.base
    try:
        return ModelRef.parse(stated) if stated else None
    except PlaitError:
        return None


def _tokens_differ(models: Sequence[Model]) -> bool:
    """Whether tokenizers have to be read to tell what rows of the vocabulary mean: they are different files, or of other size."""
    rows = {spec.shape for m in models if m.arch.embedding and (spec := m.arch.specs.get(m.arch.embedding))}
    return len(rows) > 1 or len({model.opened.mark("tokenizer.json") for model in models}) > 1


def _by_token(models: Sequence[Model], source: Input) -> bool:
    """Whether the rows of an input are a vocabulary's."""
    return models[source.model].arch.vocab_axis(source.name) is not None


def rounding(dtype: str | None) -> str | None:
    """The code of the dtype that weights with an adapter are rounded to; raises `PlaitError` for one that they cannot be."""
    if dtype is not None and CODES.get(dtype) not in MERGEABLE:
        raise PlaitError(
            f"weights with an adapter cannot be rounded to {dtype!r}",
            wanted=", ".join(DTYPES[code].name for code in MERGEABLE),
            found=str(dtype),
            do="pass one of these as --lora-merge-dtype",
        )
    return CODES[dtype] if dtype else None


def _recipe(source: Source, lenient: bool) -> tuple[Recipe, Mapping[str, Recipe]]:
    """The recipe of a source, and the other stages of its file by name; a file of another kind is named as what it is."""
    if isinstance(source, Mapping):
        return load(source, lenient=lenient), {}
    checked = kinds.check(source, lenient=lenient)
    if checked.kind == "multi":
        last = checked.last
        return last, {recipe.name: recipe for recipe in checked.recipes if recipe.name and recipe is not last}
    if checked.recipe is None:
        raise RecipeError(
            f"this is a {checked.kind} file, which is no merge",
            wanted="one recipe with merge_method",
            found=kinds.MEANING[checked.kind],
            do="run it with 'plait moe'"
            if checked.kind == "moe"
            else "write a recipe; this version has no such search",
            where=Where(os.fspath(source)) if "\n" not in os.fspath(source) else None,
        )
    return checked.recipe, {}


@contextmanager
def _many_small_records() -> Iterator[None]:
    """Planning makes millions of objects without cycles; looking for cycles among them takes as long as making them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
