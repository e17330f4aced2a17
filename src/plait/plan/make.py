"""From a checked recipe and opened models to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plait.arch import config as configs
from plait.bricks import bricks
from plait.errors import raise_all
from plait.layout import layout
from plait.method import Method
from plait.methods import registry
from plait.plan.choice import Choices
from plait.plan.losses import losses
from plait.plan.records import Options, Plan
from plait.plan.steps import Builder
from plait.recipe import Recipe
from plait.strands import Band, Model, bands

DEFAULTS = Options()


def make_plan(
    recipe: Recipe,
    models: Sequence[Model],
    options: Options = DEFAULTS,
    methods: Mapping[str, Method] | None = None,
) -> Plan:
    """Decide everything that names, shapes, dtypes and configs can settle; raises all problems together.

    `methods`: by default those of the registry.
    """
    donor = next((i for i, m in enumerate(models) if m.ref == recipe.base), 0)
    parts = bands(recipe, models, donor)
    choices = Choices(recipe, registry() if methods is None else methods, bricks())
    builder = Builder(recipe, models, choices, options)
    for made in parts.values():
        builder.module(made)
    raise_all([*builder.findings.problems(), *choices.problems()])
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
    return Plan(
        recipe=recipe,
        models=tuple(models),
        donor=donor,
        steps=steps,
        shards=layout(specs, options.shard_size),
        config=mended.config,
        dropped=losses(models, parts, builder),
        notes=(*builder.findings.notes, *mended.notes),
        seed=options.seed if options.seed is not None else 0,
        options=options,
    )


def _whole(made: Sequence[Band], count: int, donor: int) -> bool:
    """Whether a module keeps the donor's layers, all of them and in order, so that its config needs no mending."""
    return len(made) == 1 and any((s.model, s.start, s.stop) == (donor, 0, count) for s in made[0].strands)
