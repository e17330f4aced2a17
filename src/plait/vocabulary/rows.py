"""Which row of which model each row of the output's vocabulary comes from, as index arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plait.vocabulary.read import Tokens

Index = NDArray[np.int64]

#: in place of a model's number: zeros; the average of the models that have the token; the mean of the model's other rows
ZERO, AVERAGE, MEAN = -1, -2, -3
NONE = -1  # in place of a row


@dataclass(frozen=True)
class Origins:
    """For each row of the output the model that it comes from (or ZERO, AVERAGE, MEAN), and the row there."""

    model: Index
    row: Index

    def without(self, other: Origins) -> Origins:
        """These, and where they are NONE the other's."""
        return Origins(
            np.where(self.row == NONE, other.model, self.model), np.where(self.row == NONE, other.row, self.row)
        )


@dataclass(frozen=True)
class Rule:
    """Whose row a token gets; `model` may be ZERO, and None for what holds without a rule."""

    at: int
    model: int | None
    row: int
    force: bool


def own_rows(output: Tokens, model: Tokens, rows: int, held: int) -> Index:
    """For each of `rows` rows of the output, the row of a model with `held` rows that has the same token; NONE without one.

    A row without a token (padding) is the model's row of the same number, if that is padding too and the ids agree.
    """
    found = np.full(rows, NONE, np.int64)
    at = np.fromiter(output.ids.values(), np.int64, len(output.ids))
    theirs = np.fromiter((model.ids.get(text, NONE) for text in output.ids), np.int64, len(output.ids))
    found[at] = np.where(theirs < held, theirs, NONE)
    shared = found[at] != NONE
    if shared.any() and np.array_equal(found[at][shared], at[shared]):
        spare = np.ones(rows, bool)
        spare[at] = False
        mine = np.fromiter(model.ids.values(), np.int64, len(model.ids))
        spare[mine[mine < rows]] = False
        spare[min(held, rows) :] = False
        found[spare] = np.flatnonzero(spare)
    return found


def fill_rows(own: Mapping[int, Index], base: int | None, rules: Sequence[Rule], tokens: NDArray[np.bool_]) -> Origins:
    """Where models without a token take its row from: a rule, the only model that has it, the base, the average of all.

    `own`: the models that take part, in the recipe's order; `tokens`: which rows are of a token, the others being padding.
    """
    count, rows = len(own), len(tokens)
    order = [*(m for m in own if m == base), *(m for m in own if m != base)]
    has = np.stack([own[m] != NONE for m in order]) if count else np.zeros((0, rows), bool)
    many = has.sum(0)
    first = has.argmax(0) if count else np.zeros(rows, np.int64)
    number = np.array(order, np.int64)[first] if count else np.full(rows, ZERO)
    row = np.stack([own[m] for m in order])[first, np.arange(rows)] if count else np.full(rows, NONE)
    if base in own:
        chosen, average = many > 0, (many > 1) & ~has[0]
    else:
        chosen, average = many == 1, many > 1
    model = np.where(chosen, number, np.where(tokens, ZERO, MEAN))
    model[average] = AVERAGE
    row = np.where(model >= 0, row, NONE)
    for rule in rules:
        if rule.model is not None:
            model[rule.at], row[rule.at] = rule.model, rule.row
    return Origins(model, row)


def origins(model: int, own: Index, fill: Origins, rules: Sequence[Rule]) -> Origins:
    """Where one model's rows come from: its own, or the fill."""
    mine = own.copy()
    for rule in rules:
        if rule.force:
            mine[rule.at] = NONE
    return Origins(np.full(len(own), model), mine).without(fill)
