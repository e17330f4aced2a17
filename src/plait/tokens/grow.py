"""A model with more tokens, or more rows: `add` and `pad`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plait.errors import PlanError, nearest
from plait.layout import SHARD_SIZE
from plait.lazy import Tensor, torch
from plait.plan import Made, Plan
from plait.tokens.approximate import approximate, check, names, needs_donor
from plait.tokens.changed import Subject, changed, subject
from plait.tokens.rows import Settled
from plait.tokens.space import Options, Space
from plait.types import ModelRef
from plait.vocabulary.read import Tokens
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import NONE, Index
from plait.vocabulary.unite import encoded, extend, loaded

NONE_OF_THEM = np.zeros(0, np.int64)


def add(
    model: str | os.PathLike[str] | ModelRef,
    texts: Sequence[str],
    options: Options | None = None,
    *,
    like: str | None = None,
    special: bool = False,
    pad_to_multiple_of: int = 1,
    shard_size: int = SHARD_SIZE,
    cache: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan of a model with more tokens. Their rows are as `options` say, or those of the token `like`.

    `special`: tokens that decoding may leave out. Rows that the model has to spare are used first. Raises `PlanError` for tokens
    that are there already, or that the tokenizer would not read as they are.
    """
    options = options or Options(method="mean")
    check(options.method)
    mine = subject(model, Path(cache) if cache else None)
    if like is None and needs_donor(options.method):
        fitting = [name for name in names() if not needs_donor(name)]
        do, what = "use another way", f"{options.method} needs a donor, and there is none here"
        raise PlanError(what, wanted=", ".join(fitting), found=options.method, do=do)
    texts = list(dict.fromkeys(texts))
    if there := [text for text in texts if text in mine.tokens.ids]:
        what = f"{mine.ref} has {', '.join(map(repr, there[:4]))} already"
        found = ", ".join(f"id {mine.tokens.ids[text]}" for text in there[:4])
        raise PlanError(what, wanted="tokens that it lacks", found=found, do="leave them out")
    if not texts or not all(texts):
        found, do = "an empty text" if texts else "none", "name them after MODEL and OUT"
        raise PlanError("no tokens are given", wanted="one text or more", found=found, do=do)
    if like is not None and like not in mine.tokens.ids:
        near = nearest(like, mine.tokens.ids)
        one = "a token as tokenizer.json writes it (Ġ or ▁ for a space)"
        do = f"did you mean {near!r}?" if near else "pass another --like, or leave it out"
        raise PlanError(f"{mine.ref} has no token {like!r}", wanted=one, do=do)
    output = extend(mine.tokens, {text: {"special": special} for text in texts})
    loaded(output)
    wanted = np.array([output.ids[text] for text in texts], np.int64)
    rows = _multiple(max(mine.held, output.size), pad_to_multiple_of)
    words = ["plait", "tokens", "add", str(mine.ref), "OUT", *texts, *_flags(options)]
    words += ([] if like is None else ["--like", like]) + ["--special"] * special
    words += ["--pad-to-multiple-of", str(pad_to_multiple_of)]
    how = f"the row of {like!r}" if like is not None else options.method
    note = f"{len(texts)} tokens are added, rows by {how}"
    asked: dict[str, object] = {"tokens": "add", "model": str(mine.ref), "texts": texts, "rows": how}

    def settle(name: str, head: bool, own: Matrix) -> Settled:
        row = np.arange(rows)
        row[mine.held :] = NONE
        if like is not None:
            row[wanted] = mine.tokens.ids[like]
        else:
            row[wanted] = NONE
        return row, lambda: _new(name, head, own, row, wanted if like is None else NONE_OF_THEM, texts, mine, options)

    made = Made("tokens add", f"a model with more tokens: {note}.", "", shlex.join(words))
    return changed(
        mine,
        output,
        rows,
        settle,
        made,
        asked=asked,
        seed=options.seed,
        shard_size=shard_size,
        notes=[f"tokens: {note}"],
    )


def pad(
    model: str | os.PathLike[str] | ModelRef,
    multiple: int,
    options: Options | None = None,
    *,
    shard_size: int = SHARD_SIZE,
    cache: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan of a model whose matrices have a multiple of so many rows: as many as they have, or a little more."""
    options = options or Options(method="mean")
    check(options.method)
    mine = subject(model, Path(cache) if cache else None)
    if options.method in ("subword",) or needs_donor(options.method):
        fitting = [name for name in names() if name != "subword" and not needs_donor(name)]
        what, do = f"rows without tokens cannot be made by {options.method}", "use another way"
        raise PlanError(what, wanted=", ".join(fitting), found=options.method, do=do)
    rows = _multiple(mine.held, multiple)
    note = f"{rows} rows instead of {mine.held}" if rows != mine.held else f"there are {rows} rows already"

    def settle(name: str, head: bool, own: Matrix) -> Settled:
        row = np.arange(rows)
        row[mine.held :] = NONE
        return row, lambda: _new(name, head, own, row, np.flatnonzero(row == NONE), (), mine, options)

    words = ["plait", "tokens", "pad", str(mine.ref), "OUT", "--pad-to-multiple-of", str(multiple), *_flags(options)]
    asked: dict[str, object] = {
        "tokens": "pad",
        "model": str(mine.ref),
        "pad_to_multiple_of": multiple,
        "rows": options.method,
    }
    made = Made("tokens pad", f"a model whose vocabulary is padded: {note}.", "", shlex.join(words))
    return changed(
        mine,
        mine.tokens,
        rows,
        settle,
        made,
        asked=asked,
        seed=options.seed,
        shard_size=shard_size,
        notes=[f"tokens: {note}"],
    )


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _flags(options: Options) -> list[str]:
    words = ["-a", options.method, "-s", options.subword_method, "-nvn", str(options.noise), "-nvs", str(options.scale)]
    return [*words, "--random-seed", str(options.seed)]


def _new(
    name: str,
    head: bool,
    own: Matrix,
    row: Index,
    wanted: Index,
    texts: Sequence[str],
    mine: Subject,
    options: Options,
) -> Tensor:
    """The rows that are NONE: those `wanted` as the options say, padding by the mean."""
    lacking = np.flatnonzero(row == NONE)
    space = Space(name, head, own, None, NONE_OF_THEM, NONE_OF_THEM, wanted, lambda: _read(mine.tokens, texts), options)
    out = space.mean().float().expand(len(lacking), -1).clone()
    if len(wanted):
        out[torch.from_numpy(np.searchsorted(lacking, wanted))] = approximate(space)
    return out


def _read(tokens: Tokens, texts: Sequence[str]) -> list[list[int]]:
    """Each text as the tokens that the model has without it."""
    return [list(e.ids) for e in encoded(tokens, texts)]
