"""A merge beside what it was made of: of every parent the tensors that went into it, under the names that they have there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait import arch
from plait.checkpoint import Checkpoint, Rows
from plait.diff.sides import Side, open_side, open_sides, short
from plait.errors import ModelError, Problems
from plait.output.provenance import together
from plait.output.whole import pins, read_provenance, recipe_in_place
from plait.plan import Input, Plan
from plait.prepare import prepare
from plait.types import TensorSpec

#: where a merge keeps its recipe: plait's, and mergekit's
RECIPES = ("plait_config.yml", "mergekit_config.yml")


class Gathered:
    """Tensors of several models under other names: `places` is name -> (checkpoint, its name there, its spec)."""

    def __init__(self, config: Mapping[str, Any], places: Mapping[str, tuple[Checkpoint, str, TensorSpec]]) -> None:
        self.config, self._places = config, places
        self.specs = {name: spec for name, (_, _, spec) in places.items()}

    def read(self, name: str, rows: Rows | None = None) -> Any:
        checkpoint, there, spec = self._places[name]
        if rows is None and spec.shape != checkpoint.specs[there].shape:  # the first rows are all that was used
            return checkpoint.read(there, (0, spec.matrix[0])).reshape(spec.shape)
        return checkpoint.read(there, rows)


@dataclass(frozen=True)
class Origin:
    """The merge, last of `sides`, and its parents.

    `sides[0]` has for each tensor the base that the recipe gives it, or else the first model; the others are whole models.
    `plan`: what the recipe says, planned anew; None for parents that were named by hand. `recorded`: the provenance, or nothing.
    """

    sides: tuple[Side, ...]
    plan: Plan | None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def out(self) -> Side:
        return self.sides[-1]

    @property
    def based(self) -> bool:
        """Whether the first side is one that the others were trained from, as far as the recipe, or the caller, says."""
        return self.plan is None or any(step.base for step in self.plan.steps)


def trace(
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | None = None,
    against: Sequence[str] = (),
    cache: str | None = None,
) -> Origin:
    """Open a merge and its parents, headers only: those of `recipe` (the one beside the weights by default), or `against`.

    Raises `ModelError` where they cannot be had, and what planning raises.
    """
    folder = Path(os.fspath(out)).expanduser()
    facts = read_provenance(folder)
    if against:
        return Origin(open_sides([*against, out], cache), None, facts)
    beside = next((folder / name for name in RECIPES if (folder / name).is_file()), None)
    if recipe is None and beside is None:
        raise ModelError(
            f"{folder} does not say what it was made of",
            wanted="a recipe beside the weights: " + " or ".join(RECIPES),
            found="neither" if folder.is_dir() else "no such folder",
            do="name the recipe with --recipe, or the parents with --against, the base first",
        )
    source = Path(recipe) if recipe else recipe_in_place(folder, facts) or beside
    assert source
    try:
        plan = prepare(source, cache=cache, pins=dict(pins(facts)), **_options(facts))
    except (ModelError, Problems) as error:
        first = error.problems[0] if isinstance(error, Problems) else error
        if not isinstance(first, ModelError):
            raise
        raise ModelError(
            f"what {folder} was made of cannot be had: {first.what}",
            wanted=first.wanted,
            found=first.found,
            do="run this where the merge was run, or name the parents with --against, the base first",
        ) from error
    named = open_side(str(folder), folder.resolve().name, cache)
    sides, notes = _sides(named, plan)
    return Origin(sides, plan, facts, (*notes, *_moved(plan, facts)))


def _options(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of the merge that change what its tensors are made of."""
    chosen = recorded.get("options")
    keys = ("allow_crimes", "truncate_embeddings", "expert_layout", "lora_merge_dtype", "lenient")
    kept = {key: chosen[key] for key in keys if key in chosen} if isinstance(chosen, Mapping) else {"lenient": True}
    return kept | ({"seed": recorded["seed"]} if isinstance(recorded.get("seed"), int) else {})


def _sides(out: Side, plan: Plan) -> tuple[tuple[Side, ...], list[str]]:
    """The first sources, every other model that has a tensor for each of the output's, and the output."""
    first = {step.name: next(step.sources()) for step in plan.steps}
    mine: list[dict[str, Input]] = [{} for _ in plan.models]
    for step in plan.steps:
        for source in reversed(list(step.sources())):  # of several of one model the first
            mine[source.model][step.name] = source
    heads = list(dict.fromkeys(source.model for source in first.values()))
    taking = [i for i, found in enumerate(mine) if found and (len(heads) > 1 or i != heads[0])]
    names = short([out.called, *(str(plan.models[i].ref) for i in (*taking, heads[0]))])
    # without a base, one model's name must not stand for tensors of several
    name = names[-1] if len(heads) == 1 else "first of the sources"
    sides = [_side(out, plan, heads[0], name, first)]
    notes = []
    for i, called in zip(taking, names[1:-1], strict=True):
        specs = plan.models[i].opened.checkpoint.specs
        places = {step.name: mine[i].get(step.name, replace(first[step.name], model=i)) for step in plan.steps}
        if all(_fits(specs, places[step.name], step.spec) for step in plan.steps):
            sides.append(_side(out, plan, i, called, places))
        else:
            notes.append(f"{called} has no tensor for some of the output's: it is compared where it comes first")
    return (*sides, replace(out, name=names[0])), notes


def _fits(specs: Mapping[str, TensorSpec], place: Input, spec: TensorSpec) -> bool:
    found = specs.get(place.name)
    return found is not None and (found.shape == spec.shape or place.rows == spec.matrix[0])


def _side(out: Side, plan: Plan, model: int, name: str, places: Mapping[str, Input]) -> Side:
    opened = plan.models[model].opened
    specs = plan.specs
    view = Gathered(
        opened.checkpoint.config,
        {n: (_of(plan, p), p.name, TensorSpec(plan.spec_of(p).dtype, specs[n].shape)) for n, p in places.items()},
    )
    return Side(str(opened.ref), name, view, arch.infer(view.specs, plan.config), opened.folder)


def _of(plan: Plan, place: Input) -> Checkpoint:
    return plan.models[place.model].opened.checkpoint


def _moved(plan: Plan, facts: Mapping[str, Any]) -> list[str]:
    """Parents on this disk that are not what they were when they were merged."""
    before = {m.get("model"): m.get("fingerprint") for m in facts.get("models", ())}
    return [
        f"the weights of {model.ref} have changed since they were merged"
        for model in plan.models
        if model.opened.revision is None and before.get(str(model.ref)) not in (None, together(model.opened))
    ]
