"""The plan: how each output tensor is made, from headers alone. Nothing is read, everything is decided.

A plan is a flat list of steps in the order of the output, the layout of its shards, the output's config, and a stated reason
for each input tensor that does not reach the output.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.arch import config as configs
from plait.errors import PlaitError, PlanError, Where, nearest, raise_all
from plait.layout import SHARD_SIZE, Shard, layout
from plait.method import Method, bind
from plait.recipe import Recipe
from plait.recipe.setting import position
from plait.strands import Band, Model, Strand, bands
from plait.types import MERGEABLE, TensorSpec


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a step: a tensor of a model, and how many of its rows are read (None: all)."""

    model: int
    name: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter's value for one tensor: for which model (None: shared), from which scope, from which line."""

    parameter: str
    value: Any
    model: int | None
    scope: str
    where: Where | None


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor is made. Without a method it is a copy of the first input; the others must be equal to it."""

    name: str
    spec: TensorSpec
    inputs: tuple[Input, ...]
    base: Input | None
    method: Method | None
    params: Any
    settings: tuple[Given, ...]
    module: str
    layer: int | None
    note: str | None = None

    def sources(self) -> Iterator[Input]:
        """Every input, the base first."""
        if self.base:
            yield self.base
        yield from self.inputs


@dataclass(frozen=True)
class Dropped:
    """Input tensors that do not reach the output, and why."""

    model: int
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """All that `run` needs, and all that can be said before it runs."""

    recipe: Recipe
    models: tuple[Model, ...]
    donor: int  # the model whose config, tokenizer and side files the output takes
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    seed: int
    options: Options

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {step.name: step.spec for step in self.steps}

    @property
    def nbytes(self) -> int:
        """Bytes of the output's shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def read_nbytes(self) -> int:
        """Bytes of all inputs that the steps read, each once."""
        return sum(self.spec_of(source).nbytes for step in self.steps for source in step.sources())

    def spec_of(self, source: Input) -> TensorSpec:
        return self.models[source.model].opened.checkpoint.specs[source.name]

    def with_notes(self, notes: Sequence[str]) -> Plan:
        return replace(self, notes=tuple(dict.fromkeys((*notes, *self.notes))))

    def step(self, name: str) -> Step:
        """The step of one output tensor; raises `PlanError` with the nearest name."""
        for step in self.steps:
            if step.name == name:
                return step
        guess = nearest(name, (s.name for s in self.steps))
        raise PlanError(
            f"the output has no tensor {name!r}",
            wanted="a name that `plait plan` lists",
            found=name,
            do=f"did you mean {guess}?" if guess else None,
        )


@dataclass(frozen=True)
class Options:
    """What the caller, not the recipe, decides."""

    shard_size: int = SHARD_SIZE
    allow_crimes: bool = False
    truncate_embeddings: bool = False
    seed: int | None = None


DEFAULTS = Options()


def make_plan(recipe: Recipe, models: Sequence[Model], method: Method, options: Options = DEFAULTS) -> Plan:
    """Decide everything that names, shapes, dtypes and configs can settle; raises all problems together."""
    donor = next((i for i, m in enumerate(models) if m.ref == recipe.base), 0)
    _same_architecture(models, options)
    parts = bands(recipe, models, donor)
    builder = _Builder(recipe, models, method, options)
    for name, module_bands in parts.items():
        builder.module(name, module_bands)
    raise_all(builder.problems())
    steps = tuple(builder.steps)
    specs = {step.name: step.spec for step in steps}
    chosen = {
        name: [
            (models[b.strands[0].model].opened.config, b.strands[0].start + k) for b in made for k in range(b.layers)
        ]
        for name, made in parts.items()
        if not _whole(made, models[donor].arch.module(name).count, donor)
    }
    tied = False if builder.untied else None
    mended = configs.mend(models[donor].opened.config, models[donor].arch, chosen, specs, tied=tied)
    dropped = _accounted(models, parts, builder)
    return Plan(
        recipe=recipe,
        models=tuple(models),
        donor=donor,
        steps=steps,
        shards=layout(specs, options.shard_size),
        config=mended.config,
        dropped=dropped,
        notes=(*builder.notes, *mended.notes),
        seed=options.seed if options.seed is not None else 0,
        options=options,
    )


def _whole(made: Sequence[Band], count: int, donor: int) -> bool:
    """Whether a module keeps the donor's layers, all of them and in order, so that its config needs no mending."""
    return len(made) == 1 and any((s.model, s.start, s.stop) == (donor, 0, count) for s in made[0].strands)


def _same_architecture(models: Sequence[Model], options: Options) -> None:
    named = {m.ref: (m.opened.config.get("architectures") or [None])[0] for m in models}
    if len(set(named.values())) > 1 and not options.allow_crimes:
        raise PlanError(
            "the models are of different architectures",
            wanted="one architecture",
            found=", ".join(f"{ref}: {name or 'unknown'}" for ref, name in named.items()),
            do="pass --allow-crimes if their tensors have the same names and shapes",
        )


class _Builder:
    """Makes the steps of one module after the other, and collects what does not fit."""

    def __init__(self, recipe: Recipe, models: Sequence[Model], method: Method, options: Options) -> None:
        self.recipe, self.models, self.method, self.options = recipe, models, method, options
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.used: list[set[str]] = [set() for _ in models]
        self.untied = False
        self.ties_dropped: list[tuple[int, str]] = []
        self._missing: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        self._shapes: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        self._others: dict[str, PlaitError] = {}
        self._notes: Counter[str] = Counter()

    # ── walking the output ──────────────────────────────────────────────────────────────────────────────────────────────

    def module(self, name: str, made: Sequence[Band]) -> None:
        """The steps of one module: before the layers, the layers of each band, after them."""
        if not made:
            return
        self._loose(name, made[0], "before")
        for band in made:
            stack = band.strands[band.base or 0].module.stack or band.strands[0].module.stack
            for k in range(band.layers):
                assert stack is not None
                for suffix in self._suffixes(band, k):
                    own = [(s, s.module.stack.name(s.start + k, suffix)) for s in band.strands if s.module.stack]
                    self._step(stack.name(band.first + k, suffix), own, band, position(k, band.layers), band.first + k)
        self._loose(name, made[-1], "after")

    def _suffixes(self, band: Band, k: int) -> dict[str, None]:
        order = sorted(band.strands, key=lambda s: s is not band.strands[band.base or 0])
        stacks = [(s.module.stack, s.start + k) for s in order]
        return dict.fromkeys(suffix for stack, layer in stacks if stack for suffix in stack.layers[layer])

    def _loose(self, name: str, band: Band, side: str) -> None:
        order = sorted(band.strands, key=lambda s: s is not band.strands[band.base or 0])
        for loose in dict.fromkeys(n for s in order for n in getattr(s.module, side)):
            self._step(loose, [(s, loose) for s in band.strands], band, 0.0, None)

    # ── one tensor ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, name: str, own: list[tuple[Strand, str]], band: Band, t: float, layer: int | None) -> None:
        present = self._present(name, own)
        if not present:
            return
        specs = [self.models[s.model].opened.checkpoint.specs[n] for s, n in present]
        sources = [Input(s.model, n) for s, n in present]
        shape, sources = self._shape(name, present, specs, sources)
        if shape is None:
            return
        for (strand, n), _ in zip(present, sources, strict=True):
            self.used[strand.model].add(n)
        copied = not band.scopes or any(not spec.floating for spec in specs)
        if copied:
            spec = TensorSpec(specs[0].dtype, shape)
            note = (
                "copied: the recipe does not speak of this module"
                if not band.scopes
                else "copied: not a floating dtype"
            )
            self.steps.append(Step(name, spec, tuple(sources), None, None, None, (), band.module, layer, note))
            return
        odd = next((spec.dtype for spec in specs if spec.dtype not in MERGEABLE), None)
        if odd:
            self._problem(
                PlanError(
                    f"tensors in {odd} cannot be merged",
                    wanted="float32, float16, bfloat16 or float64 weights",
                    found=f"{name} and others",
                    do="use the model that this one was quantised from",
                )
            )
            return
        spec = TensorSpec(self.recipe.out_dtype or self.recipe.dtype or _promoted(specs), shape)
        self._merge(name, spec, present, sources, specs, band, t, layer)

    def _merge(
        self,
        name: str,
        spec: TensorSpec,
        present: list[tuple[Strand, str]],
        sources: list[Input],
        specs: list[TensorSpec],
        band: Band,
        t: float,
        layer: int | None,
    ) -> None:
        method = self.method
        strands = [s for s, _ in present]
        at = None
        if method.base != "ignored" and band.base is not None:
            at = next((i for i, s in enumerate(strands) if s is band.strands[band.base]), None)
        merged = [i for i in range(len(present)) if i != at]
        values: dict[str, Any] = {}
        settings: list[Given] = []
        try:
            for parameter in method.parameters:
                if parameter.per_model:
                    given = [self._given(parameter, band, t, name, strands[i], present[i][1]) for i in merged]
                    values[parameter.name] = tuple(g.value for g in given)
                    settings += given
                else:
                    shared = self._given(parameter, band, t, name, None, name)
                    values[parameter.name] = shared.value
                    settings.append(shared)
            params = bind(method, values)
            copy = method.gives == "coefficients" and method.first is None and merged
            coefficients = method(params, None) if copy else None
        except ValueError as error:
            where = settings[0].where if settings else self.recipe.at("merge_method")
            self._problem(PlanError(f"{method.name}: {error}", found=f"for {name}", where=where))
            return
        except PlaitError as error:
            self._problem(error)
            return
        inputs = tuple(sources[i] for i in merged)
        base = sources[at] if at is not None else None
        identity = coefficients == [1.0] and (method.space == "weight" or base is None)
        if identity and specs[merged[0]].dtype == spec.dtype:
            self.steps.append(Step(name, spec, inputs, None, None, None, tuple(settings), band.module, layer))
        else:
            self.steps.append(Step(name, spec, inputs, base, method, params, tuple(settings), band.module, layer))

    def _given(self, parameter: Any, band: Band, t: float, name: str, strand: Strand | None, own: str) -> Given:
        """The value of a parameter: the first scope that has one for this tensor, else the method's default."""
        scopes = [("the model", strand.parameters), *band.scopes] if strand else band.scopes
        model = strand.model if strand else None
        for scope, parameters in scopes:
            setting = parameters.get(parameter.name)
            found = setting.evaluate(own, t, parameter.kind) if setting else None
            if found:
                return Given(parameter.name, found.value, model, scope, found.where)
        if parameter.required:
            whom = f" for {self.models[strand.model].ref}" if strand else ""
            raise PlanError(
                f"{self.method.name} needs {parameter.name}{whom}",
                wanted=parameter.doc,
                found=f"no value for {name}",
                do=f"add a line without a filter: {parameter.name}: …",
                where=(strand.where if strand else None) or self.recipe.at("merge_method"),
            )
        return Given(parameter.name, parameter.default, model, "the default", None)

    # ── what is there ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _present(self, name: str, own: list[tuple[Strand, str]]) -> list[tuple[Strand, str]]:
        """The tensors that take part; ties are followed, buffers may be absent, anything else that is missing is a problem."""
        has = [(s, n) for s, n in own if n in self.models[s.model].opened.checkpoint.specs]
        lacks = [(s, n) for s, n in own if n not in self.models[s.model].opened.checkpoint.specs]
        if not lacks:
            return own
        if any(n in self.models[s.model].arch.buffers for s, n in has):
            return has
        tied = {s: self.models[s.model].arch.tied.get(n) for s, n in own}
        if all(tied.values()):
            self.ties_dropped += [(s.model, n) for s, n in has]
            return []
        for strand, n in lacks:
            embedding = tied[strand]
            if embedding in self.models[strand.model].opened.checkpoint.specs:
                ref = self.models[strand.model].ref
                self.untied = True
                self.notes.append(f"{name}: {ref} ties it to {embedding}, which stands in for it; the output is untied")
            else:
                self._missing[strand.model, has[0][0].model].append(n)
        return [(s, n if (s, n) in has else tied[s] or n) for s, n in own] if not self._missing else []

    def _shape(
        self, name: str, present: list[tuple[Strand, str]], specs: list[TensorSpec], sources: list[Input]
    ) -> tuple[tuple[int, ...] | None, list[Input]]:
        """The output's shape: that of all inputs, or the shortest where vocabularies are cut."""
        shapes = [spec.shape for spec in specs]
        if len(set(shapes)) == 1:
            return shapes[0], sources
        axes = {self.models[s.model].arch.vocab_axis(n) for s, n in present}
        if axes == {0} and len({shape[1:] for shape in shapes}) == 1 and self.options.truncate_embeddings:
            rows = min(shape[0] for shape in shapes)
            cut = [Input(s.model, s.name, rows) for s in sources]
            self._notes[f"vocabulary cut to the first {rows} rows"] += 1
            return (rows, *shapes[0][1:]), cut
        key = (
            "vocabulary" if None not in axes else "other",
            *(f"{self.models[s.model].ref}: {list(shape)}" for (s, _), shape in zip(present, shapes, strict=True)),
        )
        self._shapes[key].append(name)
        return None, sources

    # ── what does not fit ───────────────────────────────────────────────────────────────────────────────────────────────

    def _problem(self, error: PlaitError) -> None:
        self._others.setdefault(f"{error.where} {error.what}", error)

    def problems(self) -> list[PlaitError]:
        found = list(self._others.values())
        for (model, other), names in self._missing.items():
            found.append(
                PlanError(
                    f"{self.models[model].ref} lacks {len(names)} tensors that {self.models[other].ref} has",
                    wanted="the same tensors in each model",
                    found="no " + _some(names),
                    do="merge models of one architecture, or leave out the model that differs",
                )
            )
        for (kind, *shapes), names in self._shapes.items():
            do = "merge models of one size"
            if kind == "vocabulary":
                do = "merge models with one vocabulary, or pass --unsafe-truncate-embeddings to cut to the shortest"
            found.append(
                PlanError(
                    "the models differ in the shape of " + _some(names),
                    wanted="one shape",
                    found=", ".join(shapes),
                    do=do,
                )
            )
        return found


def _promoted(specs: Sequence[TensorSpec]) -> str:
    """The dtype of the result when the recipe names none: the inputs' own, or the smallest that holds them all."""
    codes = {spec.dtype for spec in specs}
    if len(codes) == 1:
        return codes.pop()
    return "F64" if "F64" in codes else "F32"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _accounted(models: Sequence[Model], parts: Mapping[str, Sequence[Band]], builder: _Builder) -> tuple[Dropped, ...]:
    """Why each input tensor that does not reach the output does not; raises `PlanError` for one without a reason."""
    taken: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
    for name, made in parts.items():
        for band in made:
            for strand in band.strands:
                taken[strand.model, name].update(range(strand.start, strand.stop))
    dropped: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    tied = set(builder.ties_dropped)
    for i, model in enumerate(models):
        for name in model.opened.checkpoint.specs:
            if name in builder.used[i]:
                continue
            place = model.arch.place(name)
            if (i, name) in tied:
                reason = "tied to the embedding"
            elif (i, place.module) not in taken:
                reason = "the recipe does not take this module from it"
                if not any(model_ == i for model_, _ in taken):
                    reason = "it gives the config and the tokenizer only"
            elif place.layer is not None and place.layer not in taken[i, place.module]:
                reason = "the recipe does not take this layer"
            elif place.layer is None:
                reason = f"the {'first' if place.position == 'before' else 'last'} slice does not take from it"
            elif name in model.arch.buffers:
                reason = "a buffer that the model's code makes anew"
            else:
                reason = ""
            dropped[i, reason].append(name)
    lost = [(i, names) for (i, reason), names in dropped.items() if not reason]
    raise_all(
        PlanError(
            f"{len(names)} tensors of {models[i].ref} would not reach the output",
            wanted="every input tensor in the output, or a reason",
            found=_some(names),
            do="merge models of one architecture",
        )
        for i, names in lost
    )
    return tuple(Dropped(i, tuple(names), reason) for (i, reason), names in dropped.items())
