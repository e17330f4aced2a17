"""The front door: a recipe in, a merge out that is a checkpoint not yet written."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from plait import arch, fit
from plait.align import aligned
from plait.checkpoint import Checkpoint, Rows
from plait.checkpoint import notes as notes_of
from plait.checkpoint.source import Opened, fetched, local_path, open_model
from plait.errors import PlaitError, Problems, RecipeError, Where, raise_all
from plait.layout import SHARD_SIZE
from plait.output.inputs import fetch
from plait.output.save import Saved, save
from plait.output.sidefiles import side_files
from plait.plan import Input, Options, Plan, make_plan
from plait.recipe import Recipe, kinds, load
from plait.recipe.load import build
from plait.run import OnDemand, Progress, tensor, tensors
from plait.strands import Model
from plait.types import CODES, DTYPES, MERGEABLE, ModelRef, TensorSpec
from plait.vocabulary.shared import one_vocabulary, unlike

if TYPE_CHECKING:
    from torch import Tensor

Source = str | os.PathLike[str] | Mapping[str, Any]


class Merge:
    """A merged model that has not been written: a `Checkpoint`. Reading a tensor computes it, and no other.

    Iterating yields (name, tensor) in the output's order, one tensor in memory at a time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._steps = {step.name: step for step in plan.steps}
        self._rows = OnDemand(plan)
        self._beside: Path | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        return self.plan.config

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self.plan.specs

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """One tensor, or rows [start, stop) of its matrix view; raises `PlanError` for an unknown name."""
        step = self._steps.get(name) or self.plan.step(name)
        return tensor(self.plan, step) if rows is None else self._rows.read(step, rows)

    def folder(self) -> Path | None:
        """A folder with what lies beside the weights: the config's model's, or one with a tokenizer or template of its own.

        Such a folder is a temporary one, which lives as long as the merge.
        """
        donor = self.plan.models[self.plan.donor].opened.folder
        if self.plan.recipe.chat_template is None and self.plan.vocabulary is None:
            return donor
        if self._beside is None:
            self._beside = Path(mkdtemp(prefix="plait-"))
            weakref.finalize(self, shutil.rmtree, self._beside, ignore_errors=True)
            side_files(fetch(self.plan, weights=False)).write(self._beside)
            if donor and (donor / "README.md").is_file():  # states the licence
                shutil.copy(donor / "README.md", self._beside)
        return self._beside

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return tensors(self.plan)

    def __len__(self) -> int:
        return len(self.plan.steps)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        force: bool = False,
        threads: int | None = None,
        copy_tokenizer: bool = True,
        card: bool = True,
        hash_inputs: bool = False,
        allow_nonfinite: bool = False,
        progress: Progress | None = None,
        stream: bool = False,
    ) -> Saved:
        """Write the model directory `out`: shards, index, config, tokenizer and side files, card, recipe, provenance.

        `force` replaces a model that is there; `threads`: one a core by default; `hash_inputs` records the SHA-256 of every
        input file; `allow_nonfinite` writes NaN and infinity too; `progress` is told the bytes done since its last call.
        `stream`: the weights of models on the Hub are read from there in parts, and not kept on this disk.
        """
        return save(
            self.plan,
            Path(out).expanduser(),
            force=force,
            threads=threads,
            copy_tokenizer=copy_tokenizer,
            write_card=card,
            hash_inputs=hash_inputs,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
            stream=stream,
        )

    def to_transformers(self) -> Any:
        """The merge as a transformers model in memory, of the class that its config names; writes nothing."""
        try:
            import transformers
        except ImportError as error:
            raise PlaitError(
                "transformers is not installed", wanted="transformers", do='pip install "plait[run]"'
            ) from error
        config = dict(self.plan.config)
        kind = getattr(transformers, (config.get("architectures") or [""])[0], None)
        if kind is None:
            raise PlaitError(
                "transformers has no class for this model",
                wanted="a class that this transformers knows",
                found=str(config.get("architectures")),
                do="update transformers, or save the merge and load it with its own code",
            )
        return kind.from_pretrained(None, config=kind.config_class.from_dict(config), state_dict=dict(self))


def open(model: str | os.PathLike[str] | ModelRef, *, cache: str | os.PathLike[str] | None = None) -> Checkpoint:
    """A model as a checkpoint, headers only: a folder, a weight file, a Hub id `org/name@revision`.

    Tensors of a Hub model that is not in the cache come over the network when they are read.
    """
    return _opened(model, cache).checkpoint


def inspect(model: str | os.PathLike[str] | ModelRef, *, cache: str | os.PathLike[str] | None = None) -> Model:
    """A model with its anatomy (`.arch`: modules, stacks, ties, vocabulary axes), from headers only."""
    opened = _opened(model, cache)
    return Model(opened, arch.infer(opened.checkpoint.specs, opened.checkpoint.config))


def _opened(model: str | os.PathLike[str] | ModelRef, cache: str | os.PathLike[str] | None) -> Opened:
    ref = model if isinstance(model, ModelRef) else ModelRef.parse(os.fspath(model))
    return open_model(ref, cache=Path(cache) if cache else None, fetch=False)


def check(source: Source | Recipe, **options: Any) -> list[PlaitError]:
    """Every problem of a recipe that can be found before the work; empty when there is none. Options as for `merge`."""
    try:
        prepare(source, **options)
    except Problems as found:
        return list(found.problems)
    except PlaitError as error:
        return [error]
    return []


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
) -> Plan:
    """Read and check a recipe, open its models (headers only), and plan the merge; raises every problem that is found."""
    with _many_small_records():
        return _prepared(
            source,
            lenient,
            Options(shard_size, allow_crimes, truncate_embeddings, seed, expert_layout),
            cache,
            lora_merge_dtype,
        )


def _prepared(
    source: Source | Recipe,
    lenient: bool,
    options: Options,
    cache: str | os.PathLike[str] | None,
    lora_merge_dtype: str | None,
) -> Plan:
    recipe, stages = (source, {}) if isinstance(source, Recipe) else _recipe(source, lenient)
    within = (os.path.realpath(recipe.path),) if recipe.path else ()
    preparing = _Preparing(lenient, options, Path(cache) if cache else None, _code(lora_merge_dtype), stages)
    plan = preparing.plan(recipe, within)
    left = ", ".join(name for name in stages if name not in preparing.used)
    return plan.with_notes([f"stages that the last one does not need are not made: {left}"]) if left else plan


@dataclass(frozen=True)
class _Preparing:
    """From recipes to plans; a model that is itself a recipe, or a stage of the same file, is planned first and then streamed."""

    lenient: bool
    options: Options
    cache: Path | None
    lora_dtype: str | None
    stages: Mapping[str, Recipe]
    used: set[str] = field(default_factory=set)

    def plan(self, recipe: Recipe, within: tuple[str, ...]) -> Plan:
        """`within`: the recipes that this one is a part of, itself the last."""
        problems, warnings = fit.problems(recipe, lenient=self.lenient)
        raise_all(problems)
        models = []
        for ref in recipe.references():
            try:
                opened = self.open(ref, recipe, within)
                if recipe.tokenizer is not None:  # its tokens decide the plan
                    opened = fetched(opened, None, side_files=True)
                models.append(Model(opened, arch.infer(opened.checkpoint.specs, opened.checkpoint.config)))
            except PlaitError as error:
                problems += error.problems if isinstance(error, Problems) else [error]
        raise_all(problems)
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
        return plan.with_notes(notes)

    def open(self, ref: ModelRef, recipe: Recipe, within: tuple[str, ...]) -> Opened:
        beside = Path(recipe.path).parent if recipe.path else None
        nested = self.nested(ref, beside)
        if nested is None:
            return open_model(ref, cache=self.cache, relative_to=beside, lora_dtype=self.lora_dtype, fetch=False)
        inner, name = nested
        if name in within:
            circle = " -> ".join((*within[within.index(name) :], name))
            do = "a merge cannot be one of its own models: break the circle"
            raise RecipeError("the recipes need each other", found=circle, do=do, where=recipe.at("merge_method"))
        plan = self.plan(inner, (*within, name))
        files = dict.fromkeys(path for model in plan.models for path in model.opened.files)
        merge = Merge(plan)
        return Opened(ref, merge.folder(), None, merge, tuple(files))

    def nested(self, ref: ModelRef, beside: Path | None) -> tuple[Recipe, str] | None:
        """The recipe that stands in a model's place, and what tells it from others."""
        if ref.recipe is not None:
            path = str(beside / "…") if beside else None  # relative paths in it mean what they mean around it
            return build(ref.tree, ref.recipe, path, lenient=self.lenient), ref.recipe
        if ref.path in self.stages:
            self.used.add(ref.path)
            return self.stages[ref.path], ref.path
        file = local_path(ref.path, beside) if ref.path.endswith((".yml", ".yaml")) else None
        if file is None or not file.is_file():
            return None
        return load(file, lenient=self.lenient), os.path.realpath(file)


def _by_token(models: Sequence[Model], source: Input) -> bool:
    """Whether the rows of an input are a vocabulary's."""
    return models[source.model].arch.vocab_axis(source.name) is not None


def _code(dtype: str | None) -> str | None:
    if dtype is not None and CODES.get(dtype) not in MERGEABLE:
        raise PlaitError(
            f"weights with an adapter cannot be rounded to {dtype!r}",
            wanted=", ".join(DTYPES[code].name for code in MERGEABLE),
            found=str(dtype),
        )
    return CODES[dtype] if dtype else None


def _recipe(source: Source, lenient: bool) -> tuple[Recipe, Mapping[str, Recipe]]:
    """The recipe of a source, and the other stages of its file by name; a file of another kind is named as what it is."""
    if isinstance(source, Mapping):
        return load(source, lenient=lenient), {}
    checked = kinds.check(source, lenient=lenient)
    if checked.kind == "multi":
        last = next((recipe for recipe in checked.recipes if recipe.name is None), checked.recipes[-1])
        return last, {recipe.name: recipe for recipe in checked.recipes if recipe.name and recipe is not last}
    if checked.recipe is None:
        raise RecipeError(
            f"this is a {checked.kind} file, which this version does not run",
            wanted="one recipe with merge_method",
            found=kinds.MEANING[checked.kind],
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


def merge(source: Source | Recipe, **options: Any) -> Merge:
    """A merge that has not been written, from a recipe: a path, a text with line breaks, a dict, or a `Recipe`.

    Options are those of `prepare`: `lenient`, `shard_size` (bytes), `allow_crimes`, `truncate_embeddings`, `seed`, `cache`,
    `expert_layout` ("split" or "fused"; by default that of the base), and `lora_merge_dtype`, to which weights with an adapter
    are rounded ("bfloat16"; by default they are not).
    """
    return Merge(prepare(source, **options))
