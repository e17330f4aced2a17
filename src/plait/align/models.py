"""Each model in the terms of the reference: views on it, what it lacks, what it has to spare."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from plait import arch
from plait.align import experts
from plait.align.spelling import spelt
from plait.arch import Architecture, names
from plait.checkpoint import Checkpoint
from plait.checkpoint.renamed import Renamed
from plait.errors import PlaitError, PlanError, raise_all
from plait.recipe import Recipe
from plait.strands import Model

_FAMILY = re.compile(r"(?:For\w+|LMHeadModel|Model)$")  # what a class's name has besides its family's
_PREDICTION = re.compile(r"(?:^|\.)mtp\.")


@dataclass(frozen=True)
class _Rules:
    """What is let pass: anything (`crimes`); layers compared by number, which slices forbid (`depth`); cut vocabularies."""

    crimes: bool
    depth: bool
    vocabulary: bool


@dataclass
class _Gap:
    """What a model lacks and has to spare: name -> reason. `modules` are the reasons that are whole modules."""

    lacks: dict[str, str] = field(default_factory=dict)
    spare: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)

    def notes(self) -> Iterator[str]:
        for reasons, what in ((self.lacks, "not merged with it"), (self.spare, "left out")):
            grouped: defaultdict[str, list[str]] = defaultdict(list)
            for name, reason in reasons.items():
                if not (reasons is self.spare and name in self.lacks):
                    grouped[reason].append(name)
            for reason, found in grouped.items():
                yield f"{reason}; {what}: {_tensors(len(found)) if reason in self.modules else patterns(found)}"


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"


def aligned(
    recipe: Recipe,
    models: Sequence[Model],
    *,
    allow_crimes: bool = False,
    truncate_embeddings: bool = False,
    expert_layout: str | None = None,
) -> tuple[list[Model], list[str]]:
    """The models in the terms of the base (or the first one), and what to tell of it. Raises what cannot be brought in line."""
    notes: dict[str, None] = {}
    sources = [source for _, piece, _ in recipe.resolved() for source in piece.sources]
    taking = {source.model for source in sources} | ({recipe.base} if recipe.base else set())
    first = next((i for i, m in enumerate(models) if m.ref == recipe.base), 0)
    reference = models[first]
    if expert_layout:
        reference = _in_layout(reference, expert_layout, notes)
    sliced = any(source.layers is not None for source in sources)
    rules = _Rules(allow_crimes, not sliced, truncate_embeddings or recipe.tokenizer is not None)
    found: list[Model] = []
    problems: list[PlaitError] = []
    for i, model in enumerate(models):
        try:
            if i == first or model.ref not in taking:
                found.append(reference if i == first else model)
            else:
                found.append(_in_line(model, reference, rules, notes))
        except PlaitError as error:
            error.where = error.where or next((s.where for s in sources if s.model == model.ref and s.where), None)
            problems.append(error)
    raise_all([*problems, *_asked_for(recipe, found, reference)])
    return found, list(notes)


def _asked_for(recipe: Recipe, models: Sequence[Model], reference: Model) -> Iterator[PlanError]:
    """One error for each model from which `modules:` wants a module that it does not have."""
    for named, piece, _ in recipe.resolved():
        if named is None or all(m.name != named for m in reference.arch.modules):
            continue
        module = reference.arch.module(named)
        having = ", ".join(str(m.ref) for m in models if any(n not in m.lacks for n in module.names()))
        for source in piece.sources:
            lacks = next((m.lacks for m in models if m.ref == source.model), {})
            if source.model != piece.base and (wanted := list(module.names())) and all(n in lacks for n in wanted):
                what, do = (
                    f"{source.model} has no {module.name}",
                    f"leave it out of the module's models; it is in {having}",
                )
                yield PlanError(
                    what,
                    wanted=f"{len(wanted)} tensors such as {wanted[0]}",
                    found="none of them",
                    do=do,
                    where=source.where,
                )


def _in_layout(model: Model, kind: str, notes: dict[str, None]) -> Model:
    """The reference with its experts as the user wants them."""
    checkpoint = model.opened.checkpoint
    if (change := experts.wanted(checkpoint, kind, model.ref)) is None:
        return model
    layout, renames = change
    notes[f"experts are written {kind}; {model.ref} has them {experts.layout_of(checkpoint.specs)}"] = None
    return _seen(model, experts.respelt(experts.relaid(checkpoint, layout), renames))


def _seen(model: Model, checkpoint: Checkpoint) -> Model:
    return Model(replace(model.opened, checkpoint=checkpoint), arch.infer(checkpoint.specs, checkpoint.config))


def _in_line(model: Model, reference: Model, rules: _Rules, notes: dict[str, None]) -> Model:
    theirs = reference.opened.checkpoint.specs
    if model.opened.checkpoint.specs.keys() != theirs.keys():
        model = _respelt(model, reference, rules, notes)
    model = replace(model, arch=arch.like(model.arch, reference.arch, depth=rules.crimes and rules.depth))
    gap = _gap(model, reference, rules)
    _same_class(model, reference, gap, rules)
    notes |= dict.fromkeys(gap.notes())
    return replace(model, lacks=gap.lacks, spare=gap.spare)


def _respelt(model: Model, reference: Model, rules: _Rules, notes: dict[str, None]) -> Model:
    """The model with its experts laid out, and its tensors called, as the reference's are."""
    checkpoint, theirs = model.opened.checkpoint, reference.opened.checkpoint.specs
    layout, other = experts.layout_of(checkpoint.specs), experts.layout_of(theirs)
    if layout and other and layout != other:
        checkpoint = experts.relaid(checkpoint, other)
        notes[f"the {layout} experts of {model.ref} are read as {other}, as {reference.ref} has them"] = None
    modality = names.words(str(checkpoint.config.get("model_type"))) & names.MODALITIES
    spelling = spelt(checkpoint.specs, theirs, modality=modality, partly=rules.crimes)
    if spelling.unclear and not rules.crimes:
        name, candidates = next(iter(spelling.unclear.items()))
        raise PlanError(
            f"it is not clear which tensors of {reference.ref} {len(spelling.unclear)} of {model.ref} are",
            wanted="names that differ by one prefix",
            found=f"{name}, which could be {' or '.join(candidates[:4])}",
            do="merge models of one architecture, or rename the tensors",
        )
    notes |= dict.fromkeys(spelling.lines(model.ref))
    if spelling.names:
        checkpoint = Renamed(checkpoint, spelling.names)
    return model if checkpoint is model.opened.checkpoint else _seen(model, checkpoint)


def _gap(model: Model, reference: Model, rules: _Rules) -> _Gap:
    """What the model lacks of the reference's tensors, and has besides them, where that has a clear meaning."""
    gap, own, other = _Gap(), model.arch, reference.arch
    mine, theirs = own.specs, other.specs
    absent = [m for m in other.modules if (found := list(m.names())) and mine.keys().isdisjoint(found)]
    if len(absent) < len(other.modules):
        for module in absent:
            why = f"{model.ref} has no {module.name}"
            gap.modules.add(why)
            gap.lacks |= dict.fromkeys(module.names(), why)
    titles = {module.name for module in other.modules}
    foreign = [m for m in own.modules if m.name not in titles]
    for module in foreign:
        why = f"{reference.ref} has no {module.name}, {model.ref} has"
        gap.modules.add(why)
        gap.spare |= dict.fromkeys(module.names(), why)
    different = _class(model) != _class(reference)
    for name in (n for n in theirs if n not in mine and n not in gap.lacks):
        if reason := _optional(name, other, own, different):
            gap.lacks[name] = f"{model.ref} has no {reason}"
            gap.modules |= {gap.lacks[name]} if reason.startswith("part") else set()
    for name in (n for n in mine if n not in theirs and n not in gap.spare):
        if reason := _optional(name, own, other, True):
            gap.spare[name] = f"{reference.ref} has no {reason}, {model.ref} has"
            gap.modules |= {gap.spare[name]} if reason.startswith("part") else set()
    if rules.crimes:
        _crimes(gap, model, reference, rules)
    return gap


def _optional(name: str, having: Architecture, lacking: Architecture, heads: bool) -> str | None:
    """What a tensor belongs to that the other model may do without; None where it must have it."""
    if _PREDICTION.search(name) or _extra_layer(name, having):
        return "layer for multi-token prediction"
    tied = name in lacking.tied or name in having.tied
    if heads and not tied and not names.numbered(name) and names.is_head(name):
        return "such head"
    senses = names.senses(name) if heads else frozenset()
    return f"part for {' and '.join(sorted(senses))}" if senses and not senses & lacking.senses else None


def _extra_layer(name: str, having: Architecture) -> bool:
    stack = having.module(having.place(name).module).stack
    layer = having.place(name).layer
    return stack is not None and layer is not None and layer >= stack.count - stack.extra


def _crimes(gap: _Gap, model: Model, reference: Model, rules: _Rules) -> None:
    """Every tensor without a counterpart of its shape. Layers of sliced models have no counterpart by number."""
    own, other = model.arch, reference.arch

    def counts(name: str, side: Architecture) -> bool:
        return (rules.depth or not names.numbered(name)) and name not in side.buffers

    for name, spec in other.specs.items():
        if name in gap.lacks or not counts(name, other):
            continue
        if name not in own.specs:
            if name not in own.tied:
                gap.lacks[name] = f"{model.ref} lacks tensors of {reference.ref}"
        elif own.specs[name].shape != spec.shape and not (rules.vocabulary and other.vocab_axis(name) is not None):
            shapes = f"{list(own.specs[name].shape)} in {model.ref}, {list(spec.shape)} in {reference.ref}"
            gap.lacks[name] = f"shapes differ, {shapes}"
            gap.spare[name] = f"its shape is another than in {reference.ref}"
    for name in own.specs:
        if name not in other.specs and name not in gap.spare and counts(name, own) and name not in other.tied:
            gap.spare[name] = f"{reference.ref} lacks tensors of {model.ref}"


def _class(model: Model) -> str | None:
    classes: list[str] = model.opened.config.get("architectures") or []
    return classes[0] if classes else None


def _same_class(model: Model, reference: Model, gap: _Gap, rules: _Rules) -> None:
    """Refuse models of different classes, but for one that is a part of the other, or the same one with another head."""
    if rules.crimes or _class(model) == _class(reference):
        return
    odd = [
        f"{patterns(found, 5)} in {one.ref} only"
        for one, two in ((reference, model), (model, reference))
        if (found := _unexplained(one.arch, two.arch, gap))
    ]
    kin = _FAMILY.sub("", _class(model) or "?") == _FAMILY.sub("", _class(reference) or "")
    if not odd and (gap.modules or kin):
        return
    raise PlanError(
        "the models are of different architectures",
        wanted="one architecture, or a part of it such as the text model of a vision-language model",
        found="; ".join([", ".join(f"{m.ref}: {_class(m) or 'unknown'}" for m in (reference, model)), *odd]),
        do="pass --allow-crimes to merge the tensors that have the same names and shapes",
    )


def _unexplained(one: Architecture, other: Architecture, gap: _Gap) -> list[str]:
    """Tensors of one that the other has not, for no reason."""
    known = gap.lacks.keys() | gap.spare.keys() | one.tied.keys() | other.tied.keys() | one.buffers
    return [name for name in one.specs if name not in other.specs and name not in known]


def patterns(found: Iterable[str], most: int | None = None) -> str:
    """Names with their numbers as N, each kind once with its count: `model.layers.N.mlp.bias (24), score.weight`."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name) for name in found)
    kinds = [f"{kind} ({count})" if count > 1 else kind for kind, count in counts.items()]
    return ", ".join(kinds[:most]) + (f" and {len(kinds) - most} more kinds" if most and len(kinds) > most else "")
