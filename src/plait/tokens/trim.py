"""A model with fewer tokens: those that a list or a text needs, and what they are made of.

Text whose tokens are all kept is read as before, token by token. Kept besides are added tokens, those that tokenizer_config.json
names, the bytes, and, where tokens are merged, the parts of each kept token. Ids move up; configs and tokenizer follow.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import PlanError
from plait.layout import SHARD_SIZE
from plait.lazy import Tensor, torch
from plait.plan import Made, Plan
from plait.tokens.changed import changed, subject
from plait.tokens.match import _BYTE
from plait.tokens.rows import Settled
from plait.types import ModelRef
from plait.vocabulary.read import Tokens, kind_of
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import NONE
from plait.vocabulary.unite import encoded, loaded

CHUNK = 1 << 16  # letters that are read at once


def trim(
    model: str | os.PathLike[str] | ModelRef,
    *,
    keep: Iterable[str] = (),
    texts: Sequence[Path] = (),
    unused: bool = False,
    pad_to_multiple_of: int = 1,
    shard_size: int = SHARD_SIZE,
    cache: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan of a model with the tokens of `keep`, and those that come up in `texts` (files).

    With `unused`, and nothing to keep, all tokens stay, and the rows that no token has go. Raises `PlanError` for a token that
    there is not, `ModelError` for a tokenizer that cannot be cut.
    """
    mine = subject(model, Path(cache) if cache else None)
    keep = list(keep)
    if lacking := [text for text in keep if text not in mine.tokens.ids]:
        found, wanted = ", ".join(map(repr, lacking[:4])), "tokens as tokenizer.json writes them (Ġ or ▁ for a space)"
        what, do = f"{mine.ref} lacks {len(lacking)} of the tokens to keep", "write them so, or leave them out"
        raise PlanError(what, wanted=wanted, found=found, do=do)
    if not keep and not texts and not unused:
        what, do = "nothing is said about what stays", "pass --keep FILE, --text FILE or --unused"
        raise PlanError(what, wanted="tokens to keep", found="none", do=do)
    output, old = mine.tokens, np.sort(np.fromiter(mine.tokens.ids.values(), np.int64))
    if keep or texts:
        ids = {mine.tokens.ids[text] for text in keep} | _seen(mine.tokens, texts)
        old = np.array(sorted(needed(mine.tokens, ids)), np.int64)
    output = renumbered(mine.tokens, old)
    rows = -(-len(old) // pad_to_multiple_of) * pad_to_multiple_of
    if output.data is not None:
        loaded(output)
        _same(mine.tokens, output, texts)

    def settle(name: str, head: bool, own: Matrix) -> Settled:
        row = np.full(rows, NONE, np.int64)
        row[: len(old)] = old
        return row, lambda: _mean(own, rows - len(old))

    note = f"{len(old)} of {len(mine.tokens.ids)} tokens stay, in {rows} rows instead of {mine.held}"
    words = ["plait", "tokens", "trim", str(mine.ref), "OUT", *(w for t in texts for w in ("--text", str(t)))]
    words += ["--keep", "FILE"] * bool(keep) + ["--unused"] * unused + ["--pad-to-multiple-of", str(pad_to_multiple_of)]
    asked: dict[str, object] = {
        "tokens": "trim",
        "model": str(mine.ref),
        "keep": keep,
        "texts": [str(t) for t in texts],
    }
    made = Made("tokens trim", f"a model with fewer tokens: {note}.", "", shlex.join(words))
    return changed(mine, output, rows, settle, made, asked=asked, shard_size=shard_size, notes=[f"tokens: {note}"])


def _mean(own: Matrix, count: int) -> Tensor:
    return torch.zeros((count, own.spec.matrix[1]))


def _seen(tokens: Tokens, texts: Sequence[Path]) -> set[int]:
    """The ids that come up in files, read line by line."""
    found: set[int] = set()
    reader = loaded(tokens) if texts else None
    for path in texts:
        for part in _parts(path):
            found.update(n for e in encoded(tokens, part, special=True, reader=reader) for n in e.ids)
    return found


def _parts(path: Path) -> Iterable[list[str]]:
    """The lines of a file, with their ends, some at a time."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            while part := file.readlines(CHUNK):
                yield part
    except OSError as error:
        raise _unreadable(path, "a text file", error) from error


def listed(path: Path) -> list[str]:
    """The tokens of a list, one a line; raises `PlanError` for a file that is no such list."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, "tokens, one a line, in UTF-8", error) from error


def _unreadable(path: Path, wanted: str, error: OSError | UnicodeDecodeError) -> PlanError:
    found = getattr(error, "strerror", None) or str(error)
    return PlanError(f"{path} cannot be read", wanted=wanted, found=found, do="check the file and its permissions")


def needed(tokens: Tokens, ids: Collection[int]) -> set[int]:
    """These ids, and those that a tokenizer cannot do without."""
    named = {tokens.ids[text] for text in tokens.named.values() if text in tokens.ids}
    kept = {*ids, *named, *(tokens.ids[text] for text in tokens.added if text in tokens.ids)}
    if tokens.data is None:
        return kept
    model = tokens.data["model"]
    kept |= {n for text, n in tokens.ids.items() if len(text) == 1 or _BYTE.fullmatch(text)}
    if model.get("unk_token") in tokens.ids:
        kept.add(tokens.ids[model["unk_token"]])
    if kind_of(model) == "Unigram" and isinstance(model.get("unk_id"), int):
        kept.add(model["unk_id"])
    if kind_of(model) == "WordPiece":
        prefix = str(model.get("continuing_subword_prefix") or "")
        kept |= {n for text, n in tokens.ids.items() if len(text.removeprefix(prefix)) == 1}
    made: dict[int, list[tuple[int, int]]] = {}
    prefix = str(model.get("continuing_subword_prefix") or "")
    for a, b in map(_pair, model.get("merges") or ()):
        whole = tokens.ids.get(a + b.removeprefix(prefix))
        if whole is not None and a in tokens.ids and b in tokens.ids:
            made.setdefault(whole, []).append((tokens.ids[a], tokens.ids[b]))
    waiting = list(kept)
    while waiting:
        for pair in made.get(waiting.pop(), ()):
            for part in pair:
                if part not in kept:
                    kept.add(part)
                    waiting.append(part)
    return kept


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    a, b = merge.split(" ", 1) if isinstance(merge, str) else merge
    return a, b


def renumbered(tokens: Tokens, old: np.ndarray[Any, np.dtype[np.int64]]) -> Tokens:
    """The vocabulary with the tokens of these ids only, numbered anew in their order."""
    new = {int(n): i for i, n in enumerate(old)}
    ids = {text: new[n] for text, n in sorted(tokens.ids.items(), key=lambda item: item[1]) if n in new}
    added = {text: {**entry, "id": ids[text]} for text, entry in tokens.added.items() if text in ids}
    named = {key: text for key, text in tokens.named.items() if text in ids}
    data = tokens.data
    if data is not None:
        model, prefix = dict(data["model"]), str(data["model"].get("continuing_subword_prefix") or "")
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {text: ids[text] for text in vocab if text in ids}
        else:
            model["vocab"] = [entry for n, entry in enumerate(vocab) if n in new]
            if isinstance(model.get("unk_id"), int):
                model["unk_id"] = new[model["unk_id"]]
        if "merges" in model:
            pairs = ((merge, *_pair(merge)) for merge in model["merges"])
            model["merges"] = [m for m, a, b in pairs if {a, b, a + b.removeprefix(prefix)} <= ids.keys()]
        data = {
            **data,
            "model": model,
            "added_tokens": [{**entry, "id": ids[entry["content"]]} for entry in data.get("added_tokens") or ()],
            "post_processor": _followed(data.get("post_processor"), ids),
        }
        if isinstance(data.get("padding"), Mapping) and data["padding"].get("pad_token") in ids:
            data["padding"] = {**data["padding"], "pad_id": ids[data["padding"]["pad_token"]]}
    return replace(tokens, ids=ids, added=added, named=named, data=data)


def _followed(part: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor with the new ids: of templates' special tokens, of `sep` and `cls`."""
    if isinstance(part, list):
        return [_followed(item, ids) for item in part]
    if not isinstance(part, Mapping):
        return part
    out: dict[str, Any] = {}
    for key, value in part.items():
        if key == "special_tokens" and isinstance(value, Mapping):
            value = {
                text: {**entry, "ids": [ids[t] for t in entry.get("tokens", [text])]} for text, entry in value.items()
            }
        elif key in ("sep", "cls") and isinstance(value, list) and len(value) == 2:
            value = [value[0], ids[value[0]]]
        else:
            value = _followed(value, ids)
        out[key] = value
    return out


def _same(old: Tokens, new: Tokens, texts: Sequence[Path]) -> None:
    """Raise `PlanError` when a text is not read as before."""
    readers = [(tokens, loaded(tokens)) for tokens in (old, new)] if texts else []
    for path in texts:
        for part in _parts(path):
            a, b = (encoded(tokens, part, special=True, reader=reader) for tokens, reader in readers)
            if odd := next((line for line, x, y in zip(part, a, b, strict=True) if x.tokens != y.tokens), None):
                what = f"{path} would be read otherwise with the tokens that it needs"
                do = "keep more tokens, by --keep FILE"
                raise PlanError(what, wanted="the same tokens", found=repr(odd[:60]), do=do)
