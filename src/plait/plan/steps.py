"""One step for each output tensor: which inputs, which method, which values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plait.checkpoint import home
from plait.errors import PlaitError, PlanError
from plait.method import Method, bind
from plait.plan.findings import Findings
from plait.plan.records import Input, Options, Step
from plait.plan.values import values
from plait.recipe import Recipe
from plait.recipe.setting import position
from plait.strands import Band, Model, Strand
from plait.types import MERGEABLE, TensorSpec


@dataclass(frozen=True, slots=True)
class _Taken:
    """A strand's tensor that takes part in a step."""

    strand: Strand
    name: str
    spec: TensorSpec

    @property
    def model(self) -> int:
        return self.strand.model


class Builder:
    """Makes the steps of one module after the other; what does not fit is in `findings`."""

    def __init__(self, recipe: Recipe, models: Sequence[Model], method: Method, options: Options) -> None:
        self.recipe, self.models, self.method, self.options = recipe, models, method, options
        self.findings = Findings(models)
        self.steps: list[Step] = []
        self.used: list[set[str]] = [set() for _ in models]
        self.tied: set[tuple[int, str]] = set()  # heads that are left out because the embedding stands for them
        self.untied = False

    def module(self, made: Sequence[Band]) -> None:
        """The steps of one module: before the layers, the layers of each band, after them."""
        self._loose(made[0], "before")
        for band in made:
            stacks = [(s, s.module.stack) for s in _reference_first(band)]
            for k in range(band.layers):
                t, layer = position(k, band.layers), band.first + k
                for suffix in dict.fromkeys(x for s, stack in stacks if stack for x in stack.layers[s.start + k]):
                    own = {id(s): stack.name(s.start + k, suffix) for s, stack in stacks if stack}
                    output = next(stack.name(layer, suffix) for _, stack in stacks if stack)
                    self._step(output, [(s, own[id(s)]) for s in band.strands if id(s) in own], band, t, layer)
        self._loose(made[-1], "after")

    def _loose(self, band: Band, side: str) -> None:
        for name in dict.fromkeys(n for s in _reference_first(band) for n in getattr(s.module, side)):
            self._step(name, [(s, name) for s in band.strands], band, 0.0, None)

    def _step(self, name: str, own: list[tuple[Strand, str]], band: Band, t: float, layer: int | None) -> None:
        every = len(own)
        own = [(s, n) for s, n in own if n not in self.models[s.model].lacks and n not in self.models[s.model].spare]
        if not any(n in self.models[s.model].opened.checkpoint.specs for s, n in own):
            return
        if len(own) < every and not self._enough([s for s, _ in own], band):
            anchor = band.strands[band.base] if band.base is not None else None
            own = [(s, n) for s, n in own if s is anchor] or own[:1]
            band = replace(band, scopes=())
        taken = self._taken(name, own)
        shaped = self._shaped(name, taken) if taken else None
        if shaped is None:
            return
        shape, rows = shaped
        for each in taken:
            self.used[each.model].add(each.name)
        inputs = [Input(each.model, each.name, rows) for each in taken]
        floating = all(each.spec.floating for each in taken)
        if not band.scopes or not floating:
            if len({each.spec.dtype for each in taken}) > 1:
                self.findings.problem(
                    PlanError(
                        f"the models differ in the dtype of {name}",
                        wanted="one dtype",
                        found=", ".join(f"{self.models[e.model].ref}: {e.spec.dtype}" for e in taken),
                        do="merge models of one kind",
                    )
                )
            note = "not floating numbers" if not floating else "the recipe does not name this module"
            note = f"copied: {note if len(own) == every else 'no other model has it'}"
            spec = TensorSpec(home(self.models[taken[0].model].opened.checkpoint, taken[0].name), shape)
            self.steps.append(Step(name, spec, tuple(inputs), None, None, None, (), band.module, layer, note))
            return
        if odd := next((each for each in taken if each.spec.dtype not in MERGEABLE), None):
            self.findings.problem(
                PlanError(
                    f"tensors in {odd.spec.dtype} cannot be merged",
                    wanted="float32, float16, bfloat16 or float64 weights",
                    found=f"{odd.name} of {self.models[odd.model].ref}",
                    do="use the model that this one was quantised from",
                )
            )
            return
        dtype = (
            self.recipe.out_dtype
            or self.recipe.dtype
            or _promoted({home(self.models[each.model].opened.checkpoint, each.name) for each in taken})
        )
        try:
            self.steps.append(self._merged(name, TensorSpec(dtype, shape), taken, inputs, band, t, layer))
        except PlaitError as error:
            self.findings.problem(error)

    def _merged(
        self,
        name: str,
        spec: TensorSpec,
        taken: list[_Taken],
        inputs: list[Input],
        band: Band,
        t: float,
        layer: int | None,
    ) -> Step:
        """The step that runs the method, or copies where the method would change nothing."""
        method = self.method
        anchor = band.strands[band.base] if band.base is not None and method.base != "ignored" else None
        base = next((source for each, source in zip(taken, inputs, strict=True) if each.strand is anchor), None)
        models = [(each, source) for each, source in zip(taken, inputs, strict=True) if each.strand is not anchor]
        taking = [(each.strand, each.name) for each, _ in models]
        found, origins = values(self.recipe, method, self.models, band, taking, name, t)
        try:
            params = bind(method, found)
            known = method.gives == "coefficients" and method.first is None and models
            coefficients = method(params, None) if known else None
        except ValueError as error:
            where = next((given.where for given in origins if given.where), self.recipe.at("merge_method"))
            raise PlanError(f"{method.name}: {error}", found=f"so for {name}", where=where) from error
        combined = tuple(source for _, source in models)
        same = coefficients == [1.0] and (method.space == "weight" or base is None)
        if same and models[0][0].spec.dtype == spec.dtype:
            return Step(name, spec, combined, None, None, None, origins, band.module, layer)
        return Step(name, spec, combined, base, method, params, origins, band.module, layer)

    def _enough(self, strands: Sequence[Strand], band: Band) -> bool:
        """Whether the method can do without the models of the band that are not among `strands`."""
        anchor = band.strands[band.base] if band.base is not None and self.method.base != "ignored" else None
        if anchor is not None and not any(s is anchor for s in strands):
            return False
        # a single model is not a merge: linear without normalize would scale it
        return len(strands) > 1 and sum(s is not anchor for s in strands) >= self.method.inputs[0]

    def _taken(self, name: str, own: list[tuple[Strand, str]]) -> list[_Taken]:
        """The tensors that take part. Ties are followed, buffers may be absent; anything else that is missing is a problem."""
        tensors = [self.models[s.model].opened.checkpoint.specs for s, _ in own]
        has = [_Taken(s, n, specs[n]) for (s, n), specs in zip(own, tensors, strict=True) if n in specs]
        if len(has) == len(own) or any(each.name in self.models[each.model].arch.buffers for each in has):
            return has
        embeddings = [self.models[s.model].arch.tied.get(n) for s, n in own]
        if all(embeddings) or self._base_ties(name):
            self.tied.update((each.model, each.name) for each in has)
            for ref in (
                self.models[each.model].ref for each in has if each.name not in self.models[each.model].arch.tied
            ):
                self.findings.note(
                    f"{name} of {ref} is left out: in {self.recipe.base}, the base, the embedding stands for it"
                )
            return []
        taken, whole = [], True
        for (strand, n), specs, embedding in zip(own, tensors, embeddings, strict=True):
            if n in specs:
                taken.append(_Taken(strand, n, specs[n]))
            elif embedding is not None and embedding in specs:
                taken.append(_Taken(strand, embedding, specs[embedding]))
                self.untied = True
                ref = self.models[strand.model].ref
                self.findings.note(
                    f"{name}: {ref} ties it to {embedding}, which stands in for it; the output is untied"
                )
            else:
                self.findings.missing(strand.model, n, has[0].model)
                whole = False
        return taken if whole else []

    def _base_ties(self, name: str) -> bool:
        """Whether the recipe's base has the embedding for this tensor: then the output has."""
        base = next((model for model in self.models if model.ref == self.recipe.base), None)
        return base is not None and name in base.arch.tied and name not in base.opened.checkpoint.specs

    def _shaped(self, name: str, taken: list[_Taken]) -> tuple[tuple[int, ...], int | None] | None:
        """(shape of the output, rows to read or None for all): that of all inputs, or the shortest vocabulary if allowed."""
        shapes = [each.spec.shape for each in taken]
        if len(set(shapes)) == 1:
            return shapes[0], None
        axes = {self.models[each.model].arch.vocab_axis(each.name) for each in taken}
        if axes == {0} and len({shape[1:] for shape in shapes}) == 1 and self.options.truncate_embeddings:
            rows = min(shape[0] for shape in shapes)
            self.findings.note(f"vocabularies are cut to the first {rows} rows")
            return (rows, *shapes[0][1:]), rows
        found = ", ".join(f"{self.models[e.model].ref}: {list(shape)}" for e, shape in zip(taken, shapes, strict=True))
        self.findings.shapes(name, found, None not in axes)
        return None


def _reference_first(band: Band) -> list[Strand]:
    """The strands with the base in front: it decides the order of names, and how they are spelt."""
    reference = band.strands[band.base or 0]
    return [reference, *(s for s in band.strands if s is not reference)]


def _promoted(codes: set[str]) -> str:
    """The dtype of the result when the recipe names none: the inputs' own, or the smallest that holds them all."""
    if len(codes) == 1:
        return next(iter(codes))
    return "F64" if "F64" in codes else "F32"
