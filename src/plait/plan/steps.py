"""One step for each output tensor: which inputs, which method, which values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plait.brick import Woven
from plait.checkpoint import home
from plait.errors import PlaitError, PlanError, Where
from plait.method import bind
from plait.plan.choice import Choice, Choices
from plait.plan.findings import Findings
from plait.plan.records import Input, Options, Step
from plait.plan.values import Scopes, values
from plait.recipe import BrickUse, Recipe, Settings
from plait.recipe.setting import position
from plait.strands import Band, Model, Strand
from plait.types import MERGEABLE, TensorSpec, promoted


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

    def __init__(self, recipe: Recipe, models: Sequence[Model], choices: Choices, options: Options) -> None:
        self.recipe, self.models, self.choices, self.options = recipe, models, choices, options
        self.findings = Findings(models)
        self.steps: list[Step] = []
        self.used: list[set[str]] = [set() for _ in models]
        self.tied: set[tuple[int, str]] = set()  # heads that are left out because the embedding stands for them
        self.passed: dict[tuple[int, str], str] = {}  # tensors that a rule passes over, and why
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
                    self._step(output, [(s, own[id(s)]) for s in band.strands if id(s) in own], band, t, t, layer)
        self._loose(made[-1], "after")

    def _loose(self, band: Band, side: str) -> None:
        for name in dict.fromkeys(n for s in _reference_first(band) for n in getattr(s.module, side)):
            depth = 0.0 if side == "before" else 1.0
            self._step(name, [(s, name) for s in band.strands], band, 0.0, depth, None)

    def _step(
        self, name: str, own: list[tuple[Strand, str]], band: Band, t: float, depth: float, layer: int | None
    ) -> None:
        try:
            choice = self.choices.of(name, layer, band) if band.scopes else None
            if choice is None and band.scopes:
                return
            if choice and choice.copy:
                own = self._copied(name, own, choice)
        except PlaitError as error:
            self.findings.problem(error)
            return
        every = len(own)
        own = [(s, n) for s, n in own if n not in self.models[s.model].lacks and n not in self.models[s.model].spare]
        if not any(n in self.models[s.model].opened.checkpoint.specs for s, n in own):
            return
        lone = "no other model has it"
        if len(own) < every and not (choice and self._enough([s for s, _ in own], band, choice)):
            anchor = band.strands[band.base] if band.base is not None else None
            kept = [(s, n) for s, n in own if s is anchor] or own[:1]
            if choice and (over := [(s.model, n) for s, n in own if (s, n) not in kept]):
                lone = f"{choice.method.name} cannot do with the models that have it"
                it = self.models[kept[0][0].model].ref
                self.passed.update(dict.fromkeys(over, f"{lone}, so that of {it} is copied"))
            own, choice = kept, None
        taken = self._taken(name, own)
        shaped = self._shaped(name, taken) if taken else None
        if shaped is None:
            return
        shape, rows = shaped
        for each in taken:
            self.used[each.model].add(each.name)
        inputs = [Input(each.model, each.name, rows) for each in taken]
        floating = all(each.spec.floating for each in taken)
        if choice is None or not floating:
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
            note = f"copied: {note if len(own) == every else lone}"
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
            or promoted({home(self.models[each.model].opened.checkpoint, each.name) for each in taken})
        )
        try:
            step = self._merged(name, TensorSpec(dtype, shape), taken, inputs, band, choice, t, layer)
            self.steps.append(replace(step, depth=depth, rule=choice.rule))
        except PlaitError as error:
            self.findings.problem(error)

    def _copied(self, name: str, own: list[tuple[Strand, str]], choice: Choice) -> list[tuple[Strand, str]]:
        """The one strand that a rule copies from; what the others have of this name is passed over."""
        where = choice.rule.where if choice.rule else self.recipe.at("otherwise")
        chosen = [(s, n) for s, n in own if self.models[s.model].ref == choice.copy]
        if not chosen:
            there = ", ".join(str(self.models[s.model].ref) for s, _ in own)
            what = f"{choice.copy} takes no part in what the rule is for"
            do = "copy from a model of the slice"
            raise PlanError(what, wanted=there, found=f"so for {name}", do=do, where=where)
        if why := next((why for s, n in chosen if (why := self.models[s.model].lacks.get(n))), None):
            do = "copy from a model that has these tensors"
            raise PlanError(f"{choice.copy} has nothing to copy: {why}", wanted=name, do=do, where=where)
        line = f"the rule on line {where.line}" if choice.rule and where else "'otherwise'"
        self.passed.update({(s.model, n): f"{line} copies from {choice.copy}" for s, n in own if (s, n) not in chosen})
        return chosen

    def _merged(
        self,
        name: str,
        spec: TensorSpec,
        taken: list[_Taken],
        inputs: list[Input],
        band: Band,
        choice: Choice,
        t: float,
        layer: int | None,
    ) -> Step:
        """The step that runs the method, or copies where the method would change nothing."""
        method, rule = choice.method, choice.rule
        where = rule.where if rule else self.recipe.at("merge_method")
        anchor = band.strands[band.base] if band.base is not None and not choice.copy else None
        pairs = list(zip(taken, inputs, strict=True))
        # a method without a base takes it as one more model, as mergekit does; a rule's method only if it is listed
        averaged = method.base == "ignored" and anchor and (anchor.listed or not (rule and rule.method))
        models = [(each, source) for each, source in pairs if each.strand is not anchor or averaged]
        base = next((source for each, source in pairs if each.strand is anchor), None)
        if method.base == "ignored" and not choice.bricks:
            base = None
        self._suits(choice, band, len(models), base, where)
        taking = [(each.strand, each.name) for each, _ in models]

        def scopes(strand: Strand | None) -> tuple[tuple[str, Settings], ...]:
            if choice.copy:
                return ()
            own = (("the model", strand.parameters),) if strand else ()
            return (*choice.settings, *own, *band.scopes)

        found, origins = values(method, self.models, scopes, taking, name, t, where)
        try:
            params = bind(method, found)
            known = method.gives == "coefficients" and method.first is None and models
            coefficients = method(params, None) if known else None
        except ValueError as error:
            where = next((given.where for given in origins if given.where), where)
            fact, mend = error.args if len(error.args) == 2 else (error, "change its parameters")
            do = f"{mend}; 'plait methods {method.name}' tells what each does"
            raise PlanError(f"{method.name}: {fact}", found=f"so for {name}", do=do, where=where) from error
        combined = tuple(source for _, source in models)
        bound = []
        for brick, use in choice.bricks:
            got, more = values(brick, self.models, _of_brick(use), taking, name, t, use.where, f"{brick.name}.")
            bound.append(bind(brick, got))
            origins += more
        if choice.bricks:
            params = Woven(params, tuple(bound[: len(choice.pre)]), tuple(bound[len(choice.pre) :]))
        same = coefficients == [1.0] and (method.space == "weight" or base is None) and not choice.bricks
        if same and models[0][0].spec.dtype == spec.dtype:
            return Step(name, spec, combined, None, None, None, origins, band.module, layer)
        return Step(name, spec, combined, base, choice.woven, params, origins, band.module, layer)

    def _suits(self, choice: Choice, band: Band, count: int, base: Input | None, where: Where | None) -> None:
        """Refuse bricks without a base, and a rule whose method does not fit the slice's models."""
        method = choice.method
        if base is None and choice.bricks:
            brick, use = choice.bricks[0]
            do = "add 'base_model:', and in slices list it among the sources"
            raise PlanError(f"{brick.name} needs a base_model", found="none", do=do, where=use.where)
        if choice.rule is None or choice.copy:
            return  # checked with the recipe
        fewest, most = method.inputs
        if method.base == "required" and band.base is None:
            raise PlanError(f"{method.name} needs a base_model", found="none", do="add 'base_model:'", where=where)
        if count < fewest or (most is not None and count > most):
            wanted = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
            what = f"{method.name} takes {wanted} model{'' if wanted == '1' else 's'}"
            what += " besides the base" if method.base != "ignored" and base else ""
            do = "choose a method that takes them"
            raise PlanError(what, wanted=wanted, found=str(count), do=do, where=where)

    def _enough(self, strands: Sequence[Strand], band: Band, choice: Choice) -> bool:
        """Whether the method can do without the models of the band that are not among `strands`."""
        anchor = band.strands[band.base] if band.base is not None and choice.method.base != "ignored" else None
        if anchor is not None and not any(s is anchor for s in strands):
            return False
        # a single model is not a merge: linear without normalize would scale it
        return len(strands) > 1 and sum(s is not anchor for s in strands) >= choice.method.inputs[0]

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


def _of_brick(use: BrickUse) -> Scopes:
    """What a model says of the brick, as `BRICK.PARAMETER` among its parameters, and then what stands with the brick."""

    def scopes(strand: Strand | None) -> tuple[tuple[str, Settings], ...]:
        own = {
            name.removeprefix(f"{use.name}."): setting
            for name, setting in (strand.parameters if strand else {}).items()
            if name.startswith(f"{use.name}.")
        }
        return ("the model", own), ("the brick", use.parameters)

    return scopes


def _reference_first(band: Band) -> list[Strand]:
    """The strands with the base in front: it decides the order of names, and how they are spelt."""
    reference = band.strands[band.base or 0]
    return [reference, *(s for s in band.strands if s is not reference)]
