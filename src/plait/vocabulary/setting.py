"""What is known of a recipe's models before the vocabulary is decided, and the models with the rows that it decides on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from plait.checkpoint import home
from plait.errors import PlaitError, PlanError, raise_all
from plait.recipe import Recipe
from plait.recipe.load import TokenizerRequest
from plait.strands import Band, Model
from plait.types import TensorSpec, promoted
from plait.vocabulary.read import Tokens, read_tokens
from plait.vocabulary.realign import Gathered, Matrix, Realigned
from plait.vocabulary.rows import AVERAGE, MEAN, NONE, ZERO, Index, Origins, Rule, fill_rows, origins, own_rows
from plait.vocabulary.shared import Vocabulary
from plait.vocabulary.unite import extend, loaded, strip, unite
from plait.vocabulary.words import additions, converted, summary, told
from plait.vocabulary.write import named_ids, sized, tokenizer_files


class Setting:
    """What is known before the vocabulary is decided: models, the sizes of their matrices, which take part where."""

    def __init__(
        self,
        recipe: Recipe,
        models: Sequence[Model],
        donor: int,
        held: Mapping[int, int],
        parts: Mapping[str, Sequence[Band]],
    ) -> None:
        self.recipe, self.models, self.donor, self.held, self.parts = recipe, models, donor, held, parts
        self.number = {model.ref: i for i, model in enumerate(models)}
        self.where = recipe.at("tokenizer") or recipe.at("tokenizer_source")
        self.axes = {i: self._axes(i) for i in held}
        found = {m for i, names in self.axes.items() for name in names for m in self.sharing(i, name)[0]}
        self.taking = sorted(found & held.keys())
        self.read: dict[int, Tokens | None] = {}

    def _axes(self, i: int) -> dict[str, int]:
        """The tensors of a model that its vocabulary spans, with the axis."""
        model, found = self.models[i], {}
        for name, spec in model.arch.specs.items():
            axis = model.arch.vocab_axis(name)
            if axis is not None and spec.shape[axis] == self.held[i] and axis in (0, len(spec.shape) - 1):
                found[name] = axis
        return found

    def sharing(self, i: int, name: str) -> tuple[list[int], int | None]:
        """The models that take part in a tensor of model `i`, in the recipe's order, and which of them is the base."""
        place = self.models[i].arch.place(name)
        made = self.parts.get(place.module)
        if not made:
            return [i], None
        chosen = {"before": made[:1], "after": made[-1:], "layer": made}[place.position]
        base = next((b.strands[b.base].model for b in chosen if b.base is not None), None)
        return [m for m in dict.fromkeys(s.model for b in chosen for s in b.strands) if self.called(m, name)], base

    def called(self, i: int, name: str) -> str | None:
        """What a model calls the tensor; its embedding stands for a tied head. None where it has none to give."""
        model = self.models[i]
        known = name if name in model.arch.specs else model.arch.tied.get(name)
        return known if known in model.arch.specs and name not in model.lacks else None

    def tokens(self, i: int) -> Tokens | None:
        if i not in self.read:
            self.read[i] = read_tokens(self.models[i].opened.tokenizer)
        return self.read[i]

    def stripped(self, i: int) -> Tokens:
        """The tokens of a model that have a row."""
        found = self.tokens(i)
        assert found is not None
        return strip(found, self.held[i]) if i in self.held else found

    def common(self) -> Tokens | None:
        """The tokens that all models have, if they have the same ones; None else, and where it cannot be told."""
        try:
            found = [self.tokens(i) for i in dict.fromkeys([self.donor, *self.taking])]
        except PlaitError:
            return None
        first = found[0]
        return first if first and all(other and other.ids == first.ids for other in found) else None

    def demand(self) -> None:
        """Raise for models without a tokenizer that can be read."""
        rules = self.recipe.tokenizer.tokens.values() if self.recipe.tokenizer else ()
        asked = {self.number[rule.model] for rule in rules if rule.source == "model" and rule.model}
        lacking = [
            str(self.models[i].ref) for i in sorted({self.donor, *self.taking, *asked}) if self.tokens(i) is None
        ]
        if lacking:
            raise PlanError(
                "the recipe asks for a tokenizer, and there are models without one that can be read",
                wanted="tokenizer.json, vocab.json, tokenizer.model or vocab.txt in each model",
                found="none in " + ", ".join(lacking),
                do="copy the tokenizer files of the model that it was made from into its folder (of a file: beside it)",
                where=self.where,
            )

    def wanted(self, request: TokenizerRequest) -> tuple[Tokens, int, tuple[str, ...]]:
        """The output's tokens, the model whose tokenizer they come from, and what to say about it."""
        source = self.donor if isinstance(request.source, str) else self.number[request.source]
        if self.tokens(source) is None:
            raise PlanError(
                f"{self.models[source].ref} has no tokenizer that can be read",
                wanted="tokenizer.json, vocab.json, tokenizer.model or vocab.txt in its folder",
                found="none",
                do="copy the tokenizer files of the model that it was made from into its folder",
                where=self.where,
            )
        output, notes = self.stripped(source), []
        gone = self.tokens(source).size - output.size if output is not self.tokens(source) else 0  # type: ignore[union-attr]
        if gone:
            notes.append(
                f"tokenizer: {gone} tokens of {self.models[source].ref} have no row in its weights and are left out"
            )
        if request.source == "union":
            others = [i for i in self.taking if i != source]
            united = unite(output, [self.stripped(i) for i in others])
            for i, markers, pieces in zip(others, united.markers, united.pieces, strict=True):
                lacked = self.stripped(i).ids.keys() - output.ids.keys()
                unused = len(lacked - united.tokens.ids.keys())
                if lacked:
                    notes.append(additions(self.models[i], self.models[source], len(lacked), unused, markers, pieces))
            output = united.tokens
        new = {text: {"special": False} for text in request.tokens if text not in output.ids}
        if new:
            output = extend(output, new)
            loaded(output)  # whatever a token's text is
        return output, source, tuple(notes)

    def rules(self, output: Tokens) -> list[Rule]:
        """The recipe's rules for single tokens, as rows."""
        found, problems = [], []
        for text, rule in (self.recipe.tokenizer.tokens if self.recipe.tokenizer else {}).items():
            model, row = None, NONE
            if rule.source == "zero":
                model = ZERO
            elif rule.model is not None:
                model = self.number[rule.model]
                tokens = self.tokens(model)
                word = text if rule.source == "model" else rule.token
                at = rule.token_id if word is None else tokens.ids.get(word) if tokens else None
                row = at if at is not None and at < self.held.get(model, 0) else NONE
                if row == NONE:
                    wanted = f"the token {word!r}" if word is not None else f"an id below {self.held.get(model, 0)}"
                    what = f"{rule.model} has no row for the source of {text!r}"
                    problems.append(
                        PlanError(
                            what,
                            wanted=wanted,
                            found="none" if rule.token_id is None else str(rule.token_id),
                            do="name another token of it, or another model",
                            where=rule.where,
                        )
                    )
            found.append(Rule(output.ids[text], model, row, rule.force))
        raise_all(problems)
        return found

    def realigned(self, output: Tokens, source: int, rows: int, notes: Sequence[str]) -> tuple[list[Model], Vocabulary]:
        """The models with their vocabulary tensors gathered, where that changes them."""
        own = {
            i: own_rows(output, tokens, rows, self.held[i])
            for i in sorted({*self.taking, source} & self.held.keys())
            if (tokens := self.tokens(i))
        }
        rules, zeros = self.rules(output), 0
        said: dict[str, list[str]] = {}
        views: list[Model] = []
        isa = np.zeros(rows, bool)
        isa[np.fromiter(output.ids.values(), np.int64, len(output.ids))] = True
        for i, model in enumerate(self.models):
            made: dict[str, Gathered] = {}
            for name, axis in self.axes.get(i, {}).items() if i in self.taking else ():
                taking, base = self.sharing(i, name)
                fill = fill_rows({m: own[m] for m in taking if m in own}, base, rules, isa)
                if source in own and source not in taking:
                    spare = (fill.model < 0) & isa & (own[source] != NONE)
                    fill.model[spare], fill.row[spare] = source, own[source][spare]
                zeros = max(zeros, int((fill.model[isa] == ZERO).sum()) - sum(rule.model == ZERO for rule in rules))
                mine = origins(i, own[i], fill, rules)
                sharing = [(m, own[m]) for m in taking if m in own]
                if gathered := self._gathered(i, name, axis, mine, sharing, rows):
                    made[name] = gathered
                    said.setdefault(name, []).append(told(self.models, i, mine))
            views.append(self._view(i, model, made, rows))
        tokenizer = self.tokens(source)
        assert tokenizer is not None
        moved, named = self._ids(output, source)
        if said:
            padded = self.recipe.tokenizer is None
            text = [*notes, *summary(self.models, output, source, rows, own, zeros, padded)]
        else:
            text = [f"tokenizer: the vocabularies of all {len(self.taking)} models are the same; nothing is realigned"]
        files = tokenizer_files(tokenizer, output)
        text += converted(self.models[source].ref, tokenizer, files)
        vocabulary = Vocabulary(
            output,
            source,
            rows,
            files,
            moved,
            named,
            {name: "rows by token: " + "; ".join(parts) for name, parts in said.items()},
            tuple(text),
        )
        donor = views[self.donor]
        config = vocabulary.follow(donor.opened.config)
        views[self.donor] = _with(donor, Realigned(donor.opened.checkpoint, {}, config), {})
        return views, vocabulary

    def _gathered(
        self, i: int, name: str, axis: int, mine: Origins, sharing: list[tuple[int, Index]], rows: int
    ) -> Gathered | None:
        """The realigned tensor; None where it is as it is, or where the models' shapes do not fit (the plan tells that)."""
        specs = self.models[i].arch.specs
        if rows == self.held[i] and np.array_equal(mine.row, np.arange(rows)) and (mine.model == i).all():
            return None
        averaged = (mine.model == AVERAGE).any()
        used = {*(np.unique(mine.model[mine.model >= 0]).tolist()), *(m for m, _ in sharing if averaged)}
        sources: dict[int, Matrix] = {}
        shape = [*specs[name].shape]
        for m in sorted(used):
            other, known = self.models[m], self.called(m, name)
            if known is None:
                return None
            theirs = [*other.arch.specs[known].shape]
            if len(theirs) != len(shape) or any(
                a != b for k, (a, b) in enumerate(zip(shape, theirs, strict=True)) if k != axis
            ):
                return None
            sources[m] = Matrix(other.opened.checkpoint, known)
        shape[axis] = rows
        checkpoint = self.models[i].opened.checkpoint
        code = promoted({specs[name].dtype, *(matrix.spec.dtype for matrix in sources.values())})
        if averaged or (mine.model == MEAN).any():
            code = promoted({code, "F32"})  # a mean is rounded with the merge, not before it
        kept = promoted({home(checkpoint, name), *(home(m.checkpoint, m.name) for m in sources.values())})
        return Gathered(TensorSpec(code, tuple(shape)), kept, axis, mine, sources, sharing)

    def _view(self, i: int, model: Model, made: Mapping[str, Gathered], rows: int) -> Model:
        if not made:
            return model
        config = sized(model.opened.config, self.held[i], rows)
        return _with(model, Realigned(model.opened.checkpoint, made, config), {self.held[i]: rows})

    def _ids(self, output: Tokens, source: int) -> tuple[dict[int, int | None], dict[str, int | list[int]]]:
        """How ids of the config's model move, and which ids have the roles that a tokenizer names."""
        theirs = self.tokens(self.donor)
        known = theirs.ids if theirs else {}
        moved = {n: output.ids.get(text) for text, n in known.items() if output.ids.get(text) != n}
        return moved, {} if source == self.donor else named_ids(output, self.models[source].opened.folder)


def _with(model: Model, checkpoint: Realigned, size: Mapping[int, int]) -> Model:
    """The model with a view in place of its checkpoint; `size`: old rows -> new ones, of its vocabularies."""
    vocabularies = frozenset(size.get(n, n) for n in model.arch.vocabularies)
    anatomy = replace(model.arch, specs=checkpoint.specs, vocabularies=vocabularies)
    return replace(model, opened=replace(model.opened, checkpoint=checkpoint), arch=anatomy)
