"""From a moe file and its models to a plan: everything but the mlps from the base, experts and a router in their place.

A mixture is a plan like any other: each tensor is a copy from one of the models, or an expert's with noise or a factor; the
router's rows are a checkpoint of their own, which is computed when the first of them is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait import arch
from plait.arch.config import mend
from plait.checkpoint import home
from plait.checkpoint.source import Opened
from plait.errors import PlaitError, PlanError, Problems, Where, raise_all
from plait.layout import SHARD_SIZE, layout
from plait.method import bind
from plait.methods.passthrough import passthrough
from plait.moe.choose import choose, config, facts, filled, homeless
from plait.moe.expert import expert
from plait.moe.families import GATED, Family
from plait.moe.gates import Gate, Gates
from plait.moe.packed import packed
from plait.moe.parts import Mlp, mlp_of, unlike
from plait.plan import Dropped, Given, Input, Made, Options, Plan, Step
from plait.prepare import Preparing, Source, rounding
from plait.recipe import Recipe, kinds
from plait.recipe.kinds import ExpertKeys
from plait.strands import Model
from plait.types import DTYPES, MERGEABLE, ModelRef, TensorSpec


@dataclass(frozen=True)
class Prepared:
    """The plan of a mixture, its class, and the rows of its router: `gates.compute` makes them, or the first read does."""

    plan: Plan
    family: Family
    gates: Gates


def prepare(
    source: Source,
    *,
    lenient: bool = False,
    alike: bool = False,
    seed: int | None = None,
    shard_size: int = SHARD_SIZE,
    expert_layout: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    lora_merge_dtype: str | None = None,
) -> Prepared:
    """Read and check a moe file (path, text or mapping), open its models (headers only), and plan the mixture.

    `alike`: let experts pass that are all one model. `expert_layout`: "split" or "fused"; by default as the class is published.
    Raises every problem that is found; no weight is read.
    """
    asked = kinds.mixture(source, lenient=lenient)
    options = Options(shard_size, False, False, seed, expert_layout, lora_merge_dtype, lenient)
    recipe = Recipe(passthrough.name, base=asked.keys.base_model, text=asked.text, path=asked.path, tree=asked.tree)
    opening = Preparing(lenient, options, Path(cache) if cache else None, rounding(lora_merge_dtype), {})
    within = (os.path.realpath(asked.path),) if asked.path else ()
    models: list[Model] = []
    nested: list[Plan] = []
    problems = [] if alike or lenient else _alike(asked)
    for ref, where in _references(asked).items():
        try:
            opened, inner = opening.open(ref, recipe, within)
            nested += [inner] if inner else []
            models.append(Model(opened, arch.infer(opened.checkpoint.specs, opened.checkpoint.config)))
        except PlaitError as error:
            found = error.problems if isinstance(error, Problems) else [error]
            for problem in found:
                problem.where = problem.where or where
            problems += found
    raise_all(problems)
    mixing = _mixing(asked, models)
    plan = replace(mixing.plan(recipe, options), nested=tuple(nested))
    if expert_layout == "fused" or mixing.family.packed:
        plan = packed(plan, mixing.family, mixing.mlps[asked.keys.base_model].stack)
    return Prepared(plan, mixing.family, mixing.gates)


def _references(asked: kinds.Mixture) -> dict[ModelRef, Where | None]:
    """Every model, the base first, with the first place that names it."""
    found = {asked.keys.base_model: asked.at("base_model")}
    for entry in (*asked.keys.experts, *(asked.keys.shared_experts or ())):
        found.setdefault(entry.source_model, entry.where)
    return found


def _alike(asked: kinds.Mixture) -> list[PlaitError]:
    experts = asked.keys.experts
    if len({e.source_model for e in experts}) > 1 or len(experts) < 2 or any(e.noise_scale for e in experts):
        return []
    do = "name other models, give them noise_scale, or pass --i-understand-this-is-not-useful-without-training"
    found = str(experts[0].source_model)
    return [PlanError("all experts are the same model", found=found, do=do, where=experts[1].where)]


def _mixing(asked: kinds.Mixture, models: Sequence[Model]) -> _Mixing:
    """What is decided once the models are known; raises what does not fit."""
    base, places = models[0], _references(asked)
    family = choose(asked, base)
    mlps: dict[ModelRef, Mlp] = {}
    problems: list[PlaitError] = []
    for model in models:
        try:
            mlps[model.ref] = mlp_of(model, places[model.ref])
        except PlanError as error:
            problems.append(error)
    raise_all(problems)
    if odd := homeless(family, base, mlps[base.ref], asked):
        problems.append(odd)
    shared = asked.keys.shared_experts or []
    wide = mlps[asked.keys.experts[0].source_model].wide
    for entry in (*asked.keys.experts, *shared):
        any_width = family.shared is not None and family.shared.any_width and any(entry is e for e in shared)
        if wrong := unlike(mlps[entry.source_model], mlps[base.ref], None if any_width else wide):
            what, do = (
                f"{entry.source_model} cannot be an expert of {base.ref}",
                "take models of one size and activation",
            )
            problems.append(PlanError(what, wanted=wrong[0], found=wrong[1], do=do, where=entry.where))
    raise_all(problems)
    known = facts(asked, base, mlps[base.ref], wide, [mlps[e.source_model] for e in shared])
    made = _Mixing(asked, models, mlps, family, known)
    raise_all(made.problems)
    return made


@dataclass
class _Mixing:
    asked: kinds.Mixture
    models: Sequence[Model]
    mlps: dict[ModelRef, Mlp]
    family: Family
    known: dict[str, Any]
    problems: list[PlaitError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.number = {model.ref: i for i, model in enumerate(self.models)}
        self.base, self.mlp = self.models[0], self.mlps[self.models[0].ref]
        self.gates = Gates(self.asked, self.base, self.mlp.stack, tuple(self._gates()), dict(self._zeros()))
        router = Opened(ModelRef("the router"), None, None, self.gates)
        self.router = len(self.models)
        self.models = [*self.models, Model(router, arch.infer(self.gates.specs, {}))]

    def _gates(self) -> Iterator[Gate]:
        shared = tuple(self.asked.keys.shared_experts or ())
        for i in range(self.mlp.stack.count):
            yield Gate(self.mlp.stack.name(i, self.family.router), i, tuple(self.asked.keys.experts))
            if shared and self.family.shared and self.family.shared.gate:
                yield Gate(self.mlp.stack.name(i, self.family.shared.gate), i, shared)

    def _zeros(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for i in range(self.mlp.stack.count):
            for suffix, shape in self.family.zeros.items():
                yield self.mlp.stack.name(i, suffix), tuple(int(filled(size, self.known)) for size in shape)

    def plan(self, recipe: Recipe, options: Options) -> Plan:
        self.gates.seed = seed = options.seed or 0
        steps = tuple(self._steps())
        raise_all(self.problems)
        specs = {step.name: step.spec for step in steps}
        mended = mend(config(self.family, self.base, self.known), self.base.arch, {}, specs)
        notes = [*self.asked.warnings, *mended.notes]
        if not self.family.loads:
            code = "deepseek-ai/deepseek-moe-16b-base"
            notes.append(f"transformers has no {self.family.model_type}: with trust_remote_code it runs code of {code}")
        count, top = len(self.asked.keys.experts), self.asked.keys.experts_per_token
        return Plan(
            recipe=recipe,
            models=tuple(self.models),
            donor=0,
            steps=steps,
            shards=layout(specs, options.shard_size),
            config=mended.config,
            dropped=tuple(self._dropped(steps)),
            notes=tuple(notes),
            seed=seed,
            options=options,
            made=Made(
                "moe",
                f"a mixture of {count} experts, {top} for each token; all but the experts is the base's.",
                "",
                f"plait moe plait_config.yml OUT --random-seed {seed}",
            ),
        )

    def _steps(self) -> Iterator[Step]:
        arch, stack = self.base.arch, self.mlp.stack
        for module in arch.modules:
            yield from (step for name in module.before for step in self._copy(name, 0, name, None))
        for i, layer in enumerate(stack.layers):
            for suffix in layer:
                name = stack.name(i, suffix)
                if suffix == self.mlp.suffixes[0]:
                    yield from self._experts(i)
                elif suffix not in self.mlp.suffixes and name not in arch.buffers:
                    yield from self._copy(name, 0, name, i)
        for module in arch.modules:
            yield from (step for name in module.after for step in self._copy(name, 0, name, None))

    def _experts(self, i: int) -> Iterator[Step]:
        """The steps of a layer's router and experts."""
        family, name = self.family, self.mlp.stack.name
        for suffix in (family.router, *family.zeros):
            yield from self._copy(name(i, suffix), self.router, name(i, suffix), i)
        for e, entry in enumerate(self.asked.keys.experts):
            yield from self._expert(entry, i, f"{family.experts}.{e}", family.words)
        for entry in self.asked.keys.shared_experts or ():
            assert family.shared
            if family.shared.gate:
                yield from self._copy(name(i, family.shared.gate), self.router, name(i, family.shared.gate), i)
            yield from self._expert(entry, i, family.shared.prefix, GATED)

    def _expert(self, entry: ExpertKeys, layer: int, prefix: str, words: tuple[str, str, str]) -> Iterator[Step]:
        mlp, model = self.mlps[entry.source_model], self.number[entry.source_model]
        for suffix, word in zip(mlp.suffixes, words, strict=True):
            values = {"noise_scale": entry.noise_scale}
            if suffix == mlp.suffixes[2]:
                values["residual_scale"] = entry.residual_scale
            given = {key: value for key, value in values.items() if value is not None}
            name, source = self.mlp.stack.name(layer, f"{prefix}.{word}.weight"), mlp.stack.name(layer, suffix)
            for step in self._copy(name, model, source, layer):
                if bind(expert, given) != bind(expert, {}):
                    told = tuple(Given(key, value, model, "the expert", entry.where) for key, value in given.items())
                    step = replace(step, method=expert, params=bind(expert, given), settings=told)
                yield step

    def _copy(self, name: str, model: int, source: str, layer: int | None) -> Iterator[Step]:
        """The step that takes a tensor as it is, in the dtype asked for; none, and a problem, where it cannot be written."""
        opened = self.models[model].opened
        spec, code = opened.checkpoint.specs[source], home(opened.checkpoint, source)
        if spec.floating and spec.dtype not in MERGEABLE:
            self.problems.append(
                PlanError(
                    f"tensors in {DTYPES[spec.dtype].name} cannot be written",
                    wanted=", ".join(DTYPES[c].name for c in MERGEABLE),
                    found=f"{source} of {opened.ref}",
                    do="use the model that this one was quantised from",
                )
            )
            return
        dtype = (self.asked.keys.dtype or code) if spec.floating else code
        yield Step(name, TensorSpec(dtype, spec.shape), (Input(model, source),), None, None, None, (), "default", layer)

    def _dropped(self, steps: Sequence[Step]) -> Iterator[Dropped]:
        used = {(source.model, source.name) for step in steps for source in step.inputs}
        for i, model in enumerate(self.models):
            left: dict[str, list[str]] = {}
            for name in model.opened.checkpoint.specs:
                if (i, name) not in used:
                    reason = "the experts stand in its place" if i == 0 else "of an expert only the mlp is taken"
                    if name in model.arch.buffers:
                        reason = "a buffer that the model's code makes anew"
                    left.setdefault(reason, []).append(name)
            yield from (Dropped(i, tuple(names), reason) for reason, names in left.items())
