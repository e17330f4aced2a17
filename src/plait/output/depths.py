"""How a merge runs over the depth of the model: each parameter's values layer by layer, and which layers are from where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from plait.arch.names import kind_of, numbered
from plait.plan import Plan, Step

#: eighths of a character cell
_BLOCKS = "▁▂▃▄▅▆▇█"


def values(plan: Plan) -> list[dict[str, Any]]:
    """The values that the recipe gives, one row for the tensors and layers that are alike.

    A row is {parameter, model (None: shared), tensors, value}, or with `layers`, a list from the first layer to the last,
    instead of the value. Parameters at their default are left out.
    """
    series: dict[tuple[str, int | None], dict[tuple[str, str], dict[int | None, Any]]] = {}
    suffixes: dict[tuple[str, str], None] = {}
    for step in plan.steps:
        if step.method is None:
            continue
        place = (step.module, _suffix(step))
        suffixes[place] = None
        for given in step.settings:
            if given.scope != "the default":
                series.setdefault((given.parameter, given.model), {}).setdefault(place, {})[step.layer] = given.value
    rows = []
    for (parameter, model), found in series.items():
        ref = None if model is None else str(plan.models[model].ref)
        for tensors, row in _alike(found, list(suffixes)):
            rows.append({"parameter": parameter, "model": ref, "tensors": tensors, **row})
    return rows


def _suffix(step: Step) -> str:
    """The tensor's name within its layer; the whole name of a tensor that has none."""
    parts = numbered(step.name) if step.layer is not None else None
    return parts[2] if parts else step.name


def _alike(
    found: dict[tuple[str, str], dict[int | None, Any]], everything: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(which tensors, {value} or {layers}) for each group with the same values."""
    constant = {repr(value) for by_layer in found.values() for value in by_layer.values()}
    if len(constant) == 1 and len(found) == len(everything):
        yield "all", {"value": next(iter(next(iter(found.values())).values()))}
        return
    groups: dict[str, tuple[dict[int | None, Any], list[tuple[str, str]]]] = {}
    for place, by_layer in found.items():
        same = {repr(value) for value in by_layer.values()}
        key = same.pop() if len(same) == 1 else repr(list(by_layer.items()))
        groups.setdefault(key, (by_layer, []))[1].append(place)
    for by_layer, places in groups.values():
        layers = [layer for layer in by_layer if layer is not None]
        row: dict[str, Any]
        if layers and len({repr(value) for value in by_layer.values()}) > 1:
            row = {"layers": [by_layer.get(i) for i in range(max(layers) + 1)]}
        else:
            row = {"value": next(iter(by_layer.values()))}
        yield _title(places, everything), row


def _title(places: Sequence[tuple[str, str]], everything: Sequence[tuple[str, str]]) -> str:
    """Kinds (attention, mlp, …) whose tensors are all here, names for the rest."""
    modules = {module for module, _ in everything}
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for place in everything:
        kinds.setdefault((place[0], kind_of(place[1])), []).append(place)
    here, words = set(places), []
    for (module, kind), members in kinds.items():
        of = f" of {module}" if len(modules) > 1 else ""
        if here.issuperset(members):
            words.append(kind + of)
        else:
            words += [suffix + of for m, suffix in members if (m, suffix) in here]
    return ", ".join(words)


def stacking(plan: Plan) -> list[dict[str, Any]]:
    """Which layers the output's layers are made of, one row a stretch; empty where every layer stays where it was."""
    layers: dict[tuple[str, int], dict[int, int]] = {}
    for step in plan.steps:
        if step.layer is not None:
            for source in step.sources():
                if parts := numbered(source.name):
                    layers.setdefault((step.module, step.layer), {})[source.model] = parts[1]
    if all(place == layer for (_, layer), sources in layers.items() for place in sources.values()) and _one_set(layers):
        return []
    rows: list[dict[str, Any]] = []
    for (module, layer), sources in layers.items():
        last = rows[-1] if rows else None
        if last and last["module"] == module and last["layers"][1] == layer and _follows(last["from"], sources):
            last["layers"][1] += 1
            for source in last["from"]:
                source["layers"][1] += 1
        else:
            made = [{"model": model, "layers": [at, at + 1]} for model, at in sources.items()]
            rows.append({"module": module, "layers": [layer, layer + 1], "from": made})
    for row in rows:
        for source in row["from"]:
            source["model"] = str(plan.models[source["model"]].ref)
    return rows


def _one_set(layers: dict[tuple[str, int], dict[int, int]]) -> bool:
    """Whether the layers of each module come from the same models."""
    sets: dict[str, set[frozenset[int]]] = {}
    for (module, _), sources in layers.items():
        sets.setdefault(module, set()).add(frozenset(sources))
    return all(len(found) == 1 for found in sets.values())


def _follows(before: list[dict[str, Any]], sources: dict[int, int]) -> bool:
    return {source["model"]: source["layers"][1] for source in before} == sources


def sparkline(numbers: Iterable[float | bool | str | None]) -> str:
    """One block a number, from the lowest (▁) to the highest (█); `·` where there is no number, and for texts."""
    taken = [float(n) if isinstance(n, int | float) else None for n in numbers]
    known = [n for n in taken if n is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    return "".join("·" if n is None else _BLOCKS[min(7, int((n - low) / span * 8))] for n in taken)
