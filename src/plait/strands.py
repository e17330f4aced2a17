"""Which layers of which models run side by side: a recipe's models, slices or modules, resolved against real models.

A band is one stretch of output layers of one module; its strands are the models that take part, each with its own layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plait.arch import Architecture, Module
from plait.checkpoint.source import Opened
from plait.errors import PlaitError, PlanError, Where, raise_all
from plait.recipe import Recipe, Settings, Slice, Source
from plait.types import ModelRef

_SCOPES = ("the slice", "the module", "the recipe")


@dataclass(frozen=True)
class Model:
    """An opened model with its anatomy, and what sets it apart from the model whose tensors the output has.

    `lacks`: names of tensors that it takes no part in, `spare`: names of its own that the output does without; with reasons.
    """

    opened: Opened
    arch: Architecture
    lacks: Mapping[str, str] = field(default_factory=dict)
    spare: Mapping[str, str] = field(default_factory=dict)

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
    parameters: Settings
    where: Where | None
    listed: bool = True  # false for a base that takes part without standing among the models


@dataclass(frozen=True)
class Band:
    """One output slice of one module. `scopes` are the shared parameters, nearest first; without any it is a copy.

    `method` is the one that holds where no rule says otherwise.
    """

    module: str
    strands: tuple[Strand, ...]
    base: int | None  # which strand is the base
    scopes: tuple[tuple[str, Settings], ...]
    first: int  # the number of its first output layer
    method: str

    @property
    def layers(self) -> int:
        return self.strands[0].stop - self.strands[0].start


def bands(recipe: Recipe, models: Sequence[Model], reference: int) -> dict[str, list[Band]]:
    """The bands of each module of the output, in order. `reference` is the model whose modules the output has.

    Raises the `PlanError`s of all that does not fit: unknown modules, layers that a model does not have, unequal lengths.
    """
    number = {model.ref: i for i, model in enumerate(models)}
    modules = models[reference].arch.modules
    if recipe.slices is not None and sum(m.stack is not None for m in modules) > 1:
        raise PlanError(
            "slices need a model with one stack of layers",
            wanted="modules:, with slices or models for each",
            found="the modules " + ", ".join(m.name for m in modules),
            do="write modules: {NAME: {slices: …}, …} with these names",
            where=recipe.at("slices"),
        )
    problems: list[PlaitError] = []
    found: dict[str, list[Band]] = {module.name: [] for module in modules}
    for named, part, scopes in recipe.resolved():
        try:
            if named is not None:
                titles = [models[reference].arch.module(named, part.where).name]
            else:
                titles = [
                    module.name for module in modules if recipe.slices is None or module.stack or len(modules) == 1
                ]
            for title in titles:
                first = sum(band.layers for band in found[title])
                found[title].append(_band(models, number, title, part, tuple(zip(_SCOPES, scopes, strict=True)), first))
        except PlaitError as error:
            problems.append(error)
    raise_all(problems)
    for title, made in found.items():
        if not made and recipe.base is not None:
            # the recipe does not speak of this module; without it the model would be broken
            whole = Slice((Source(recipe.base),), recipe.base)
            made.append(_band(models, number, title, whole, (), 0))
    return {title: made for title, made in found.items() if made}


def _band(
    models: Sequence[Model],
    number: Mapping[ModelRef, int],
    module: str,
    part: Slice,
    scopes: tuple[tuple[str, Settings], ...],
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
        strands.append(Strand(number[source.model], own, start, stop, source.parameters, source.where, source.listed))
    if len({s.stop - s.start for s in strands}) > 1:
        raise PlanError(
            "the models of one slice have different numbers of layers",
            wanted="the same number of layers from each",
            found=", ".join(f"{models[s.model].ref}: {s.stop - s.start}" for s in strands),
            do="use slices, with a layer_range of the same length for each model",
            where=part.where,
        )
    base = next((i for i, s in enumerate(strands) if models[s.model].ref == part.base), None)
    return Band(module, tuple(strands), base, scopes, first, part.method or "")
