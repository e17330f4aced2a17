"""A mixture whose experts are packed, all of a layer in one tensor: the plan of a view over the plan with a tensor for each."""

from __future__ import annotations

from dataclasses import replace

from plait import arch
from plait.align.experts import Layout, relaid, respelt, wanted
from plait.arch import Stack
from plait.checkpoint import Checkpoint
from plait.checkpoint.pieced import Made, Pieced, Run
from plait.checkpoint.source import Opened
from plait.errors import PlanError
from plait.layout import layout
from plait.merged import Merge
from plait.moe.families import GATED, Family
from plait.plan import Input, Plan, Step
from plait.strands import Model
from plait.types import ModelRef, TensorSpec


def packed(plan: Plan, family: Family, stack: Stack) -> Plan:
    """The plan with experts as the class has them published, or as transformers 5 has them in memory."""
    merge = Merge(plan)
    if family.packed:
        if plan.options.expert_layout == "split":
            raise PlanError(
                f"{family.title} has its experts packed: they cannot be written split",
                wanted="--expert-layout fused",
                found="split",
                do="leave out --expert-layout",
            )
        names = (f"{family.experts}.gate_up_proj", f"{family.experts}.down_proj")
        view = respelt(relaid(merge, Layout(None)), tuple(zip(names, family.packed, strict=True)))
        view = _shared(view, family, stack)
    else:
        found = wanted(merge, "fused", family.title)
        assert found
        view = respelt(relaid(merge, found[0]), found[1])
    opened = Opened(ModelRef("the mixture"), None, None, view)
    models = (*plan.models, Model(opened, arch.infer(view.specs, {})))
    steps = tuple(
        Step(name, spec, (Input(len(plan.models), name),), None, None, None, (), "default", _layer(name, stack))
        for name, spec in view.specs.items()
    )
    return replace(plan, models=models, steps=steps, shards=layout(view.specs, plan.options.shard_size), nested=(plan,))


def _shared(view: Checkpoint, family: Family, stack: Stack) -> Checkpoint:
    """Gate and up of a shared expert as one matrix."""
    if family.shared is None:
        return view
    both, _, down = family.shared.words
    replaced: dict[str, tuple[str, Made] | None] = {}
    for i in range(stack.count):
        gate, up, last = (stack.name(i, f"{family.shared.prefix}.{word}.weight") for word in GATED)
        if gate in view.specs:
            rows, columns = view.specs[gate].shape
            joined = Made(
                TensorSpec(view.specs[gate].dtype, (2 * rows, columns)), (Run(gate, 0, rows), Run(up, 0, rows))
            )
            replaced[gate] = stack.name(i, f"{family.shared.prefix}.{both}.weight"), joined
            replaced[up] = None
            whole = Made(view.specs[last], (Run(last, 0, columns),))
            replaced[last] = stack.name(i, f"{family.shared.prefix}.{down}.weight"), whole
    tensors: dict[str, Made | None] = {}
    for name in view.specs:
        if name not in replaced:
            tensors[name] = None
        elif entry := replaced[name]:
            tensors[entry[0]] = entry[1]
    return Pieced(view, tensors)


def _layer(name: str, stack: Stack) -> int | None:
    return int(name.removeprefix(stack.prefix).split(".")[0]) if name.startswith(stack.prefix) else None
