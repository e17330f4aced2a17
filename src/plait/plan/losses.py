"""Every input tensor is in the output, or it is listed here with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from plait.errors import PlanError, raise_all
from plait.plan.findings import some
from plait.plan.records import Dropped
from plait.plan.steps import Builder
from plait.strands import Band, Model


def losses(models: Sequence[Model], parts: Mapping[str, Sequence[Band]], builder: Builder) -> tuple[Dropped, ...]:
    """Why each input tensor that does not reach the output does not; raises `PlanError` for one without a reason."""
    taken: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
    for name, made in parts.items():
        for band in made:
            for strand in band.strands:
                taken[strand.model, name].update(range(strand.start, strand.stop))
    edges = {
        (name, position): {strand.model for strand in made[end].strands}
        for name, made in parts.items()
        for position, end in (("before", 0), ("after", -1))
    }
    dropped: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    for i, model in enumerate(models):
        for name in model.opened.checkpoint.specs:
            if name in builder.used[i]:
                continue
            if name in model.spare:
                dropped[i, model.spare[name]].append(name)
                continue
            place = model.arch.place(name)
            if (i, name) in builder.passed:
                reason = builder.passed[i, name]
            elif (i, name) in builder.tied:
                reason = "tied to the embedding"
            elif (i, place.module) not in taken:
                reason = "the recipe does not take this module from it"
                if not any(model_ == i for model_, _ in taken):
                    reason = "it gives the config and the tokenizer only"
            elif place.layer is not None and place.layer not in taken[i, place.module]:
                reason = "the recipe does not take this layer"
            elif place.layer is None and i not in edges[place.module, place.position]:
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
            found=some(names),
            do="leave this model out, and report it: plait has to have a reason",
        )
        for i, names in lost
    )
    return tuple(Dropped(i, tuple(names), reason) for (i, reason), names in dropped.items())
