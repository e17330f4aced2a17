"""Plans, steps and models as plain data, for JSON and for people."""

from __future__ import annotations

import re
from typing import Any

from plait.align.experts import layout_of
from plait.errors import Where
from plait.estimate import Estimate
from plait.method import Declared
from plait.plan import Given, Input, Plan, Step
from plait.strands import Model


def plan_json(plan: Plan, cost: Estimate) -> dict[str, Any]:
    """Everything a plan decides, as JSON types."""
    shard_of = {name: (shard.filename, at) for shard in plan.shards for name, at in shard.offsets.items()}
    return {
        "method": plan.title,
        "seed": plan.seed,
        "models": [
            {
                "model": str(model.ref),
                "revision": model.opened.revision,
                "folder": str(model.opened.folder) if model.opened.folder else None,
                "tensors": len(model.opened.checkpoint.specs),
            }
            for model in plan.models
        ],
        "config_and_tokenizer_from": plan.donor,
        "steps": [
            {**step_json(plan, step), "shard": shard_of[step.name][0], "offset": shard_of[step.name][1]}
            for step in plan.steps
        ],
        "shards": [{"file": shard.filename, "bytes": shard.nbytes} for shard in plan.shards],
        "not_in_the_output": [{"model": d.model, "reason": d.reason, "tensors": list(d.names)} for d in plan.dropped],
        "vocabulary": _vocabulary(plan),
        "notes": list(plan.notes),
        "config": dict(plan.config),
        "totals": {
            "read_bytes": cost.read_nbytes,
            "write_bytes": cost.write_nbytes,
            "memory_bytes": cost.memory,
            "compute_seconds": round(cost.seconds, 3),
            "threads": cost.threads,
        },
    }


def step_json(plan: Plan, step: Step) -> dict[str, Any]:
    """One step as JSON types, with the recipe's line for each value."""
    return {
        "name": step.name,
        "dtype": step.spec.dtype,
        "shape": list(step.spec.shape),
        "method": step.method.name if step.method else "copy",
        "module": step.module,
        "layer": step.layer,
        "base": _input(plan, step.base) if step.base else None,
        "inputs": [_input(plan, source) for source in step.inputs],
        "settings": [_given(given) for given in step.settings],
        "note": step.note,
        "rule": _rule(plan, step),
    }


def _rule(plan: Plan, step: Step) -> dict[str, Any] | None:
    """The rule that fitted, or what the recipe says of tensors that none fits; None where it has no rules."""
    recipe = plan.recipe
    if step.rule is not None:
        return {"when": str(step.rule.when), "where": _place(step.rule.where)}
    return {"otherwise": str(recipe.otherwise), "where": _place(recipe.at("otherwise"))} if recipe.rules else None


def _input(plan: Plan, source: Input) -> dict[str, Any]:
    spec = plan.spec_of(source)
    return {
        "model": source.model,
        "tensor": source.name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "rows": source.rows,
    }


def _vocabulary(plan: Plan) -> dict[str, Any] | None:
    if plan.vocabulary is None:
        return None
    made = plan.vocabulary
    return {
        "tokens": len(made.tokens.ids),
        "rows": made.rows,
        "tokenizer_from": made.source,
        "rows_of": dict(made.origins),
    }


def _given(given: Given) -> dict[str, Any]:
    return {
        "parameter": given.parameter,
        "value": given.value,
        "model": given.model,
        "scope": given.scope,
        "where": _place(given.where),
    }


def _place(where: Where | None) -> dict[str, Any] | None:
    return {"path": where.path, "line": where.line, "column": where.column} if where else None


def values(step: Step) -> str:
    """The parameters of a step on one line: `weight=0.5,0.3 lambda=1`; those at their defaults are left out."""
    shown: dict[str, list[str]] = {}
    for given in step.settings:
        if given.scope != "the default":
            shown.setdefault(given.parameter, []).append(
                f"{given.value:.4g}" if isinstance(given.value, float) else str(given.value)
            )
    return " ".join(f"{name}={','.join(found)}" for name, found in shown.items()) or "-"


def model_json(model: Model) -> dict[str, Any]:
    """The anatomy of a model: modules, stacks, loose tensors, vocabulary, ties, sizes by kind."""
    arch, specs = model.arch, model.opened.checkpoint.specs
    kinds: dict[str, int] = {}
    dtypes: dict[str, int] = {}
    for name, spec in specs.items():
        kinds[arch.kind(name)] = kinds.get(arch.kind(name), 0) + spec.numel
        dtypes[spec.dtype] = dtypes.get(spec.dtype, 0) + 1
    return {
        "model": str(model.ref),
        "revision": model.opened.revision,
        "architecture": (model.opened.config.get("architectures") or [None])[0],
        "tensors": len(specs),
        "parameters": sum(spec.numel for spec in specs.values()),
        "bytes": sum(spec.nbytes for spec in specs.values()),
        "dtypes": dtypes,
        "modules": [
            {
                "name": module.name,
                "stack": module.stack.prefix if module.stack else None,
                "layers": module.count,
                "layer_key": ".".join(module.stack.layer_key) if module.stack and module.stack.layer_key else None,
                "layer_tensors": list(dict.fromkeys(s for layer in module.stack.layers for s in layer))
                if module.stack
                else [],
                "before": list(module.before),
                "after": list(module.after),
            }
            for module in arch.modules
        ],
        "vocabulary": {
            name: list(specs[name].shape)
            for module in arch.modules
            for name in (*module.before, *module.after)
            if arch.vocab_axis(name) is not None
        },
        "tied": dict(arch.tied),
        "experts": str(layout) if (layout := layout_of(specs)) else None,
        "buffers": sorted(arch.buffers),
        "parameters_by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])),
    }


def bibtex(method: Declared) -> str:
    """The reference of a method or brick in BibTeX: `Authors, Title, https://…`, or without authors, as its docstring has it."""
    match = re.fullmatch(r"(?:(?P<author>.+?), )?(?P<title>.+), (?P<url>https?://\S+)", method.reference)
    if match is None:
        return f"@misc{{{method.name},\n  note = {{{method.reference}}}\n}}"
    author = (match["author"] or "").replace(" et al.", " and others").replace("; ", " and ")
    fields = {**({"author": author} if author else {}), "title": match["title"], "url": match["url"]}
    if arxiv := re.search(r"arxiv\.org/abs/([\w.]+)", match["url"]):
        fields |= {"eprint": arxiv[1], "archivePrefix": "arXiv", "year": f"20{arxiv[1][:2]}"}
    elif year := re.search(r"\((\d{4})\)", match["title"]):
        fields |= {"title": match["title"].replace(f" ({year[1]})", ""), "year": year[1]}
    return f"@misc{{{method.name},\n" + ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items()) + "\n}"
