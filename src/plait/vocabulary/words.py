"""What is said of a vocabulary: which tokens came, and from where the rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plait.strands import Model
from plait.types import ModelRef
from plait.vocabulary.read import Tokens
from plait.vocabulary.rows import AVERAGE, MEAN, NONE, ZERO, Index, Origins

_KINDS = {ZERO: "zero", AVERAGE: "the average of the models that have the token", MEAN: "the mean of the others"}


def additions(
    other: Model, base: Model, lacked: int, unused: int, markers: Sequence[str], pieces: Sequence[str]
) -> str:
    """What another model adds to a union."""
    shown = f" ({_some(markers)})" if markers else ""
    said = f"tokenizer: {other.ref} has {lacked} tokens that {base.ref} lacks; "
    said += f"it adds {len(markers)} markers{shown} and {len(pieces)} ordinary tokens"
    return said + (f"; {unused} that no text would become are left out" if unused else "")


def told(models: Sequence[Model], i: int, mine: Origins) -> str:
    """How many rows of a model are its own, and where the others come from."""
    counts = []
    for number in np.unique(mine.model).tolist():
        what = "its own" if number == i else _KINDS.get(number) or f"of {models[number].ref}"
        counts.append((number != i, f"{int((mine.model == number).sum())} {what}"))
    return f"{models[i].ref}: " + ", ".join(text for _, text in sorted(counts))


def summary(
    models: Sequence[Model],
    output: Tokens,
    source: int,
    rows: int,
    own: Mapping[int, Index],
    zeros: int,
    padded: bool,
) -> list[str]:
    """The vocabulary in a sentence or two. `padded`: the models differ in their padding only."""
    n = len(output.ids)
    if padded:
        return [f"vocabulary: all models have the same {n} tokens, padded differently; the output has {rows} rows"]
    at = np.fromiter(output.ids.values(), np.int64, n)
    has = ", ".join(f"{models[i].ref} has {int((own[i][at] != NONE).sum())}" for i in own)
    lines = [f"vocabulary: {n} tokens, from the tokenizer of {models[source].ref}, in {rows} rows; {has}"]
    if zeros:
        lines.append(f"vocabulary: {zeros} tokens are in no model that is merged; their rows are zero")
    return lines


def converted(ref: ModelRef, old: Tokens, files: Mapping[str, str | None]) -> list[str]:
    """That tokenizer.json is made of an older file, which is left out."""
    left = "tokenizer.json" in files and files.get(old.path.name, "") is None
    return [f"tokenizer: {ref}'s {old.path.name} becomes tokenizer.json"] if left else []


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
