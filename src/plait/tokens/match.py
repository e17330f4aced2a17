"""Which row of a model stands for each token of a donor: by its text, by its role, by its byte, by its beginning.

Texts are compared with one mark for the beginning of a word, whichever of `▁` and `Ġ` a tokenizer has; the tokens that
tokenizer_config.json names (bos, eos, unk, …) are compared by their roles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from plait.vocabulary.read import Tokens
from plait.vocabulary.rows import NONE, Index

#: roles that are compared as such, in the order in which a token that has several of them takes one
ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "Ġ"


@dataclass(frozen=True)
class Matched:
    """For each id of the donor the model's row, or NONE: `exact` for tokens that are the same, `lent` for what stands in."""

    exact: Index
    lent: Index


def keys(tokens: Tokens) -> dict[str, int]:
    """(role or normal text) -> id."""
    roles: dict[str, str] = {}
    for role in ROLES:
        if (text := tokens.named.get(role)) in tokens.ids:
            roles.setdefault(str(text), role)
    return {f"\0{roles[text]}" if text in roles else plain(text): n for text, n in tokens.ids.items()}


def plain(text: str) -> str:
    """A token's text with `Ġ` for the beginning of a word."""
    return text.replace("▁", _SPACE)


def matched(donor: Tokens, model: Tokens, held: int, size: int, *, byte: bool = False, prefix: bool = False) -> Matched:
    """Rows of a model with `held` rows for the donor's ids below `size`. `byte`: `<0x41>` and `A` stand for each other;
    `prefix`: the longest token that the text begins with stands in."""
    own = {key: n for key, n in keys(model).items() if n < held}
    exact, lent = np.full(size, NONE, np.int64), np.full(size, NONE, np.int64)
    spelt = _bytes(own)
    for key, n in keys(donor).items():
        if n >= size:
            continue
        exact[n] = own.get(key, NONE)
        if exact[n] == NONE and byte:
            exact[n] = _byte(key, own, spelt)
        if exact[n] == NONE and prefix and not key.startswith("\0"):
            cuts = (key[:end] for end in range(len(key) - 1, 0, -1))
            lent[n] = next((own[cut] for cut in cuts if cut in own and cut != _SPACE), NONE)
    return Matched(exact, lent)


def _bytes(own: Mapping[str, int]) -> dict[int, int]:
    """byte -> row of its token."""
    return {int(match[1], 16): n for key, n in own.items() if (match := _BYTE.fullmatch(key))}


def _byte(key: str, own: Mapping[str, int], spelt: Mapping[int, int]) -> int:
    """The row of `A` for `<0x41>`, of `<0x41>` for `A`; NONE for anything else."""
    if match := _BYTE.fullmatch(key):
        number = int(match[1], 16)
        return own.get(_letters()[number], own.get(chr(number), NONE) if number < 128 else NONE)
    if len(key) == 1:
        found = {letter: number for number, letter in _letters().items()}.get(key)
        return spelt.get(found, NONE) if found is not None else NONE
    return NONE


def _letters() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [n for n in range(256) if n not in shown]
    return {**{n: chr(n) for n in shown}, **{n: chr(256 + i) for i, n in enumerate(rest)}}
