"""Several adapters made one: the merge of what they change, never of A and B for themselves.

A sum of changes, each times a number, is written exactly: the factors stand beside each other, and the ranks add up. What any
other method makes of the changes is computed on their cores (`core`), and factored again; so is a sum if ranks are limited.
What is left out is told. The base is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plait import plain
from plait.checkpoint.adapter import Adapter, open_adapter
from plait.checkpoint.directory import read_json
from plait.checkpoint.dtypes import torch_dtype
from plait.checkpoint.source import Opened, adapter_folder, is_adapter
from plait.errors import ModelError
from plait.lora import factors
from plait.lora.core import Bases, Cores
from plait.lora.limit import Limit
from plait.lora.report import Row, options, texts
from plait.lora.write import AdapterWriter, configuration, factor_code
from plait.methods import registry
from plait.plan import Options, Plan
from plait.prepare import Source
from plait.recipe import Recipe, load
from plait.run import tensor, workshop
from plait.strands import Model
from plait.types import DTYPES, ModelRef

ZEROS = ModelRef("(the base)")


@dataclass(frozen=True)
class Merged:
    """What was written, a row for each module, and what there is to say."""

    out: Path
    rows: tuple[Row, ...]
    nbytes: int
    notes: tuple[str, ...]


class BaseNeededError(ModelError):
    """An adapter is not factors alone, so that its change depends on the base."""


def merge(
    source: Source | Recipe,
    out: str | Path,
    limit: Limit | None = None,
    *,
    dtype: str = "float32",
    seed: int | None = None,
    lenient: bool = False,
    cache: str | None = None,
    force: bool = False,
    progress: Callable[[int], Callable[[int], Any]] | None = None,
) -> Merged:
    """Merge the adapters that a recipe has as its models, and write the result to `out`.

    A method sees the changes as models, and a base of zeros where it needs one (and the recipe names no adapter as its base).
    `limit`: the ranks of the result; by default nothing is left out. Raises `BaseNeededError` for adapters that are more
    than factors.
    """
    code = factor_code(dtype)
    recipe = source if isinstance(source, Recipe) else load(source, lenient=lenient)
    beside, kept = Path(recipe.path).parent if recipe.path else None, Path(cache) if cache else None
    recipe = _based(recipe, kept, beside)
    folders = {ref: adapter_folder(ref, kept, beside) for ref in recipe.references() if ref != ZEROS}
    adapters = {ref: open_adapter(folder) for ref, (folder, _) in folders.items()}
    copies = _copies(list(adapters.values()))
    for adapter in adapters.values():
        _refuse(adapter, copies)
    if len({(a.settings.transposed, a.settings.parameters) for a in adapters.values()}) > 1:
        found = ", ".join(str(a.folder) for a in adapters.values())
        what, wanted = "the adapters are of different kinds", "the same fan_in_fan_out and target_parameters in each"
        do = "merge those of one kind, or list them as BASE+ADAPTER in a recipe for plait merge"
        raise ModelError(what, wanted=wanted, found=found, do=do)
    refs = list(adapters)
    bases = Bases(list(adapters.values()))

    def opened(ref: ModelRef) -> Opened:
        number = refs.index(ref) if ref in adapters else None
        files = adapters[ref].files if ref in adapters else ()
        return Opened(ref, None, None, Cores(bases, number), files)

    def models(found: Sequence[Opened]) -> list[Model]:
        return [Model(o, plain.anatomy(o.checkpoint.specs, o.checkpoint.specs)) for o in found]

    plan = plain.plan(recipe, opened, models, Options(seed=seed, lenient=lenient))
    out = Path(out).expanduser()
    inputs = [path for a in adapters.values() for path in (*a.files, a.folder)]
    numbers = [refs.index(m.ref) if m.ref in adapters else None for m in plan.models]
    names = [n for site in bases.sites.values() for n in (*factors.names(site), factors.bias_name(site))]
    size = DTYPES[code].bits // 8
    bound = sum(site.groups * sum(site.ranks) * (site.out + site.inside) * size for site in bases.sites.values())
    with AdapterWriter(out, [*names, *copies], bound, inputs, force) as writer:
        tell = progress(len(bases.sites)) if progress else None
        rows = _written(plan, bases, numbers, limit, torch_dtype(code), writer, tell)
        for stored, adapter in copies.items():
            writer.add(stored, adapter.checkpoint.read(stored))
        config = _config(bases, rows)
        told = [f"A merge of {len(refs)} adapters by {plan.recipe.method}:", "", *(f"- `{ref}`" for ref in refs)]
        facts = {"recipe": plan.recipe.text, "seed": plan.seed, "limit": options(limit) if limit else None}
        writer.finish(config, texts(out, told, str(config["base_model_name_or_path"]), rows, (), facts))
    whose = dict.fromkeys(str(read_json(a.settings.path).get("base_model_name_or_path")) for a in bases.adapters)
    notes = [f"the adapters name different bases: {', '.join(whose)}"] if len(whose) > 1 else []
    return Merged(out, tuple(rows), writer.nbytes, (*plan.notes, *notes))


def _based(recipe: Recipe, cache: Path | None, beside: Path | None) -> Recipe:
    """The recipe with a base of zeros where its methods need one, or where its base is a model and no adapter."""
    needed = any(registry()[name].base == "required" for name in recipe.methods() if name in registry())
    if recipe.base is None:
        return replace(recipe, base=ZEROS) if needed or any(recipe.bricks()) else recipe
    if recipe.base in {source.model for source in recipe.models or ()}:
        return recipe
    adapter = is_adapter(recipe.base, cache, beside)
    return recipe if adapter else replace(recipe, base=ZEROS)


def _copies(adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """The base's embeddings, which PEFT writes beside their factors: stored name -> an adapter that has it, where all agree."""
    found: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        for stored in adapter.replaced.values():
            if stored.endswith(".base_layer.weight"):
                found.setdefault(stored, []).append(adapter)
    return {
        stored: having[0]
        for stored, having in found.items()
        if all(torch.equal(a.checkpoint.read(stored), having[0].checkpoint.read(stored)) for a in having[1:])
    }


def _refuse(adapter: Adapter, copies: Mapping[str, Adapter]) -> None:
    more = []
    if adapter.settings.dora:
        more.append("DoRA")
    if whole := [name for name, stored in adapter.replaced.items() if stored not in copies]:
        more.append(f"whole tensors ({whole[0]})")
    if adapter.tokens:
        more.append("trained tokens")
    if more:
        raise BaseNeededError(
            f"the adapter {adapter.folder} changes its base by more than factors",
            wanted="LoRA alone, or the base that the adapters belong to",
            found=", ".join(more),
            do="name the base with --base-model; the merged change is then factored anew",
        )


def _written(
    plan: Plan,
    bases: Bases,
    numbers: Sequence[int | None],
    limit: Limit | None,
    dtype: torch.dtype,
    writer: AdapterWriter,
    tell: Callable[[int], Any] | None,
) -> list[Row]:
    """Every module's factors and bias, written one after the other."""
    rows = []
    steps = {step.name: step for step in plan.steps}
    with workshop() as one_thread:
        one_thread()
        for site in bases.sites.values():
            b, a, row = factors.factored(plan, steps[f"{site.name}.weight"], bases, site, numbers, limit, dtype)
            if row.rank:
                for name, x in zip(factors.names(site), factors.as_stored(site, b, a), strict=True):
                    writer.add(name, x)
            if (step := steps.get(f"{site.name}.bias")) is not None:
                writer.add(factors.bias_name(site), tensor(plan, step).to(dtype))
            rows.append(row)
            if tell:
                tell(1)
    return rows


def _config(bases: Bases, rows: Sequence[Row]) -> dict[str, Any]:
    first = read_json(bases.adapters[0].settings.path)
    ranks: dict[str, int] = {}
    for row in rows:
        if row.rank and ranks.setdefault(row.module, row.rank) != row.rank:
            lower, higher = sorted((ranks[row.module], row.rank))
            raise ModelError(
                f"{row.module} would have two ranks",
                wanted="one rank for all tensors of a module",
                found=f"{lower} and {higher}",
                do=f"pass --max-rank {lower}",
            )
    packed = {s.sample.module for s in bases.sites.values() if s.groups > 1 or s.sample.inner}
    more: dict[str, Any] = {key: first[key] for key in ("task_type", "target_parameters") if key in first}
    more |= {"fan_in_fan_out": bases.adapters[0].settings.transposed}
    more |= {"lora_bias": True} if bases.biases else {}
    base = str(first.get("base_model_name_or_path"))
    targets = [module for module in ranks if module not in packed]
    return configuration(base, {}, ranks, targets, [], more)


def over_base(source: Source, base: str) -> tuple[dict[str, Any], int]:
    """(the recipe that merges the models base + adapter, the sum of the adapters' ranks), for adapters that need their base."""
    recipe = load(source)
    named = {source.model: f"{base}+{source.model}" for source in recipe.models or ()}
    made: dict[str, Any] = dict(recipe.tree)
    entries = zip(recipe.tree["models"], recipe.models or (), strict=True)
    made["models"] = [{**entry, "model": named[source.model]} for entry, source in entries]
    if recipe.base in named:
        made["base_model"] = named[recipe.base]
    elif any(registry()[name].base != "ignored" for name in recipe.methods()):
        made["base_model"] = base
    ranks = sum(open_adapter(adapter_folder(ref)[0]).settings.rank for ref in named)
    return made, ranks
