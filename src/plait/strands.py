"""Which layers of which models run side by side: a recipe's models, slices or modules, resolved against real models.

A band is one stretch of output layers of one module; its strands are the models that take part, each with its own layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.arch import Architecture, Module
from plait.checkpoint.source import Opened
from plait.errors import PlaitError, PlanError, Where, raise_all
from plait.recipe import Recipe, Slice, Source
from plait.setting import Setting
from plait.types import ModelRef

Parameters = Mapping[str, Setting]


@dataclass(frozen=True)
class Model:
    """An opened model with its anatomy."""

    opened: Opened
    arch: Architecture

    @property
    def ref(self) -> ModelRef:
        return self.opened.ref


@dataclass(frozen=True)
class Strand:
    """Layers [start, stop) of one model's module, and the parameters that the recipe gives this model here."""

    model: int
    module: Module
    start: int
    stop: int
    parameters: Parameters
    where: Where | None


@dataclass(frozen=True)
class Band:
    """One output slice of one module. `scopes` are the shared parameters, nearest first."""

    module: str
    strands: tuple[Strand, ...]
    base: int | None  # which strand is the base
    scopes: tuple[tuple[str, Parameters], ...]
    first: int  # the number of its first output layer
    where: Where | None

    @property
    def layers(self) -> int:
        return self.strands[0].stop - self.strands[0].start


def bands(recipe: Recipe, models: Sequence[Model], reference: int, base_joins: bool) -> dict[str, list[Band]]:
    """The bands of each module of the output, in order. `reference` is the model whose modules the output has.

    `base_joins`: a base that is not listed among the models takes part all the same.

    Raises the `PlanError`s of all that does not fit: unknown modules, layers that a model does not have, unequal lengths.
    """
    number = {model.ref: i for i, model in enumerate(models)}
    modules = models[reference].arch.modules
    problems: list[PlaitError] = []
    found: dict[str, list[Band]] = {}

    def add(module: str, slices: Sequence[Slice], outer: tuple[tuple[str, Parameters], ...]) -> None:
        first, made = 0, []
        for part in slices:
            try:
                band = _band(recipe, models, number, module, part, outer, first)
            except PlaitError as error:
                problems.append(error)
                continue
            made.append(band)
            first += band.layers
        found[module] = made

    def listed(sources: Sequence[Source]) -> tuple[Source, ...]:
        absent = recipe.base is not None and base_joins and all(s.model != recipe.base for s in sources)
        return (*sources, Source(recipe.base, None, {}, None)) if recipe.base and absent else tuple(sources)

    top = (("the recipe", recipe.parameters),)
    if recipe.models is not None:
        for module in modules:
            add(module.name, [Slice(listed(recipe.models), None, {}, None)], top)
    elif recipe.slices is not None:
        if len([m for m in modules if m.stack]) > 1:
            raise PlanError(
                "slices need a model with one stack of layers",
                wanted="modules:, with slices or models for each",
                found="the modules " + ", ".join(m.name for m in modules),
                do="write modules: {NAME: {slices: …}, …} with these names",
                where=recipe.at("slices"),
            )
        add(modules[0].name, recipe.slices, top)
    else:
        named = {}
        for name, part in (recipe.modules or {}).items():
            try:
                named[models[reference].arch.module(name, part.where).name] = part
            except PlaitError as error:
                problems.append(error)
        raise_all(problems)
        for module in modules:
            if part := named.get(module.name):
                outer = (("the module", part.parameters), *top)
                slices = part.slices or [Slice(listed(part.models or ()), None, {}, part.where)]
                add(module.name, slices, outer)
            elif recipe.base is not None:
                # a module that the recipe does not speak of is the base's: leaving it out would break the model
                add(module.name, [Slice((Source(recipe.base, None, {}, None),), None, {}, None)], ())
    raise_all(problems)
    return found


def _band(
    recipe: Recipe,
    models: Sequence[Model],
    number: Mapping[ModelRef, int],
    module: str,
    part: Slice,
    outer: tuple[tuple[str, Parameters], ...],
    first: int,
) -> Band:
    strands = []
    for source in part.sources:
        model = models[number[source.model]]
        own = model.arch.module(module, source.where)
        start, stop = source.layers or (0, own.count)
        if stop > own.count:
            raise PlanError(
                f"{source.model} does not have the layers {start} to {stop}",
                wanted=f"a layer_range within [0, {own.count}]" if own.count else "layer_range: [0, 0]",
                found=f"[{start}, {stop}]",
                do="the second number is the first layer that is not taken; counting starts at 0",
                where=source.where,
            )
        strands.append(Strand(number[source.model], own, start, stop, source.parameters, source.where))
    if len({s.stop - s.start for s in strands}) > 1:
        lengths = ", ".join(f"{models[s.model].ref}: {s.stop - s.start}" for s in strands)
        raise PlanError(
            "the models of one slice have different numbers of layers",
            wanted="the same number of layers from each",
            found=lengths,
            do="give each source a layer_range of the same length"
            if recipe.slices
            else "use slices with a layer_range for each model",
            where=part.where or strands[0].where,
        )
    base = part.base or recipe.base
    at = next((i for i, s in enumerate(strands) if models[s.model].ref == base), None)
    return Band(module, tuple(strands), at, (("the slice", part.parameters), *outer), first, part.where)
