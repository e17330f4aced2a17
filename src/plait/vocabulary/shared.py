"""From a recipe and its models to models that have one vocabulary, and what the output's tokenizer is."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.errors import PlaitError, PlanError
from plait.recipe import Recipe
from plait.strands import Model, bands
from plait.vocabulary.read import Tokens, read_tokens
from plait.vocabulary.write import follow


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens, and where each of its rows comes from."""

    tokens: Tokens
    source: int  # the model whose tokenizer files the output has
    rows: int  # of the output's matrices
    files: Mapping[str, str | None]  # that differ from the source's: their text, or None for those left out
    moved: Mapping[int, int | None]  # ids of the config's model whose tokens have another id, or none, in the output
    named: Mapping[str, int | list[int]]  # ids of the roles, where the tokenizer is not of the config's model
    origins: Mapping[str, str]  # tensor -> where its rows come from, in words
    notes: tuple[str, ...]

    @property
    def moves(self) -> bool:
        """Whether ids of the config's model are not those of the output."""
        return bool(self.moved or self.named)

    def follow(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config of the model that the config is from, with the ids of the output's tokens."""
        return follow(config, self.moved, self.named)


def one_vocabulary(
    recipe: Recipe, models: Sequence[Model], truncate: bool = False
) -> tuple[list[Model], Vocabulary | None]:
    """The models with the rows of one vocabulary, which the recipe asks for or which they have but for the padding.

    Without either, the models as they are, and None. `truncate`: rows beyond the shortest matrix are to be cut, not filled.
    Raises `PlanError` for what cannot be met, `ModelError` for tokenizers that cannot be read.
    """
    donor = next((i for i, m in enumerate(models) if m.ref == recipe.base), 0)
    held = {i: rows for i, m in enumerate(models) if (rows := _held(m)) is not None}
    request = recipe.tokenizer
    if request is None and (donor not in held or truncate or len(set(held.values())) < 2):
        return list(models), None
    if donor not in held:
        raise PlanError(
            f"{models[donor].ref} has no token embedding, and the recipe asks for a tokenizer",
            wanted="a model with tokens",
            do="take 'tokenizer' out of the recipe",
            where=recipe.at("tokenizer") or recipe.at("tokenizer_source"),
        )
    from plait.vocabulary.setting import Setting  # numpy, only where rows may move

    setting = Setting(recipe, models, donor, held, bands(recipe, models, donor))
    if request is None:
        output = setting.common()
        return (
            setting.realigned(output, donor, max(held[i] for i in setting.taking), ())
            if output
            else (list(models), None)
        )
    setting.demand()
    output, source, notes = setting.wanted(request)
    rows = max(output.size, held.get(source, 0))
    if request.pad_to_multiple_of:
        rows = -(-output.size // request.pad_to_multiple_of) * request.pad_to_multiple_of
    return setting.realigned(output, source, rows, notes)


def _held(model: Model) -> int | None:
    """The rows of a model's token embedding; None without one."""
    name = model.arch.embedding
    return model.arch.specs[name].shape[model.arch.vocab_axis(name) or 0] if name in model.arch.specs and name else None


def unlike(models: Sequence[Model]) -> tuple[str, ...]:
    """What to say of models whose rows are merged by their numbers although their tokenizers differ."""
    first, notes = models[0], []
    for model in models[1:]:
        files = [m.opened.folder / "tokenizer.json" for m in (first, model) if m.opened.folder]
        if (
            len(files) < 2
            or not all(file.is_file() for file in files)
            or filecmp.cmp(files[0], files[1], shallow=False)
        ):
            continue
        try:
            a, b = (read_tokens(file.parent) for file in files)
        except PlaitError:
            continue  # the recipe does not ask for a tokenizer
        if a and b and a.ids != b.ids:
            count = len({n for _, n in a.ids.items() ^ b.ids.items()})
            notes.append(
                f"the tokenizers of {first.ref} and {model.ref} differ in {count} ids, and rows are merged by their numbers; "
                "tokenizer: {source: base} or {source: union} merges them by their tokens"
            )
    return tuple(notes)
