"""The tokens of a model folder, as data: from tokenizer.json, or from the older files that tokenizers were kept in."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import read_json
from plait.errors import ModelError
from plait.vocabulary.sentencepiece import added_token, convert, parse

LIMIT = 1 << 24  # ids from here on are no ids of tokens
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")


@dataclass(frozen=True)
class Tokens:
    """Every token of a tokenizer with its id, and the tokenizer.json that says how text becomes tokens."""

    path: Path  # the file that was read
    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]] = field(repr=False)  # added tokens, special or not: the entries of the file
    data: Mapping[str, Any] | None = field(
        default=None, repr=False
    )  # tokenizer.json; made from tokenizer.model; or None
    named: Mapping[str, str] = field(
        default_factory=dict, repr=False
    )  # "eos" -> its token, as tokenizer_config.json says

    @property
    def kind(self) -> str | None:
        """BPE, Unigram, WordPiece or WordLevel; None for older files that are not converted."""
        return kind_of(self.data["model"]) if self.data else None

    @property
    def size(self) -> int:
        """The highest id and one."""
        return max(self.ids.values(), default=-1) + 1


def read_tokens(folder: Path | None) -> Tokens | None:
    """The tokens of a model folder, or None when it has no tokenizer that can be read; `ModelError` for a broken one.

    Read are tokenizer.json, vocab.json (with merges.txt), tokenizer.model and vocab.txt, the first of these that is there.
    """
    if folder is None:
        return None
    for name, reader in _READERS.items():
        if (folder / name).is_file():
            return reader(folder / name)
    return None


def kind_of(model: Mapping[str, Any]) -> str:
    """The kind of the `model` part of a tokenizer.json; older files do not name it."""
    if "type" in model:
        return str(model["type"])
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _tokenizer_json(path: Path) -> Tokens:
    data = read_json(path)
    model, added = data.get("model"), data.get("added_tokens") or []
    if not isinstance(model, dict) or kind_of(model) not in KINDS:
        raise _broken(path, "a model of the kind " + ", ".join(KINDS), f"model: {str(model)[:60]}")
    vocab = model.get("vocab")
    if kind_of(model) == "Unigram":
        pairs = isinstance(vocab, list) and all(
            isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) and isinstance(e[1], int | float)
            for e in vocab
        )
        if not pairs:
            raise _broken(path, "vocab: [[token, score], …]", str(vocab)[:60])
        ids = {entry[0]: i for i, entry in enumerate(vocab or [])}
    else:
        ids = _checked(path, vocab)
    if not isinstance(added, list) or not all(isinstance(e, dict) and isinstance(e.get("content"), str) for e in added):
        raise _broken(path, 'added_tokens: [{"id": …, "content": "…"}, …]', str(added)[:60])
    extra = {entry["content"]: entry.get("id") for entry in added}
    whole = _checked(path, {**ids, **extra})
    return Tokens(path, whole, {entry["content"]: entry for entry in added}, data, _named(path.parent))


def _vocab_json(path: Path) -> Tokens:
    return _older(path, _checked(path, read_json(path)))


def _vocab_txt(path: Path) -> Tokens:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, "a token on each line, in UTF-8", str(error)) from error
    return _older(path, {line.rstrip("\n"): i for i, line in enumerate(lines)})


def _sentencepiece(path: Path) -> Tokens:
    try:
        parts = parse(path.read_bytes())
    except (OSError, ValueError, IndexError, TypeError, KeyError, struct.error) as error:
        raise _broken(path, "a SentencePiece model", type(error).__name__) from error
    older = _older(path, _checked(path, {piece.text: i for i, piece in enumerate(parts.pieces)}))
    file = path.with_name("tokenizer_config.json")
    data = convert(parts, read_json(file) if file.is_file() else {})
    if data is None:
        return older
    added = {token["content"]: token for token in data["added_tokens"]}
    for text, token in older.added.items():
        normalized = text in added and added[text]["normalized"]  # the prefix of a text is none of an added token's
        plain = added_token(token["id"], text, bool(token.get("special")))
        added[text] = {**plain, **token, "normalized": normalized}
    data["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    return replace(older, added=added, data=data)


def _older(path: Path, ids: Mapping[str, int]) -> Tokens:
    """Tokens of an older file, with those that added_tokens.json and tokenizer_config.json add."""
    added: dict[str, dict[str, Any]] = {}
    if (file := path.with_name("added_tokens.json")).is_file():
        added |= {
            text: {"id": n, "content": text, "special": False} for text, n in _checked(file, read_json(file)).items()
        }
    file = path.with_name("tokenizer_config.json")
    decoder = read_json(file).get("added_tokens_decoder") if file.is_file() else None
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if not (number.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)):
            raise _broken(file, 'added_tokens_decoder: {"ID": {"content": …}}', f"{number}: {str(entry)[:60]}")
        added[entry["content"]] = {**entry, "id": int(number)}
    whole = _checked(path, {**ids, **{text: entry["id"] for text, entry in added.items()}})
    return Tokens(path, whole, added, None, _named(path.parent))


def _named(folder: Path) -> dict[str, str]:
    """bos, eos, pad, … -> the token's text, as tokenizer_config.json and special_tokens_map.json have them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        for key, value in settings.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key.removesuffix("_token")] = text
    return found


def _checked(path: Path, ids: object) -> dict[str, int]:
    """token -> id, refused unless every id is a number of its own that can be a row's."""
    if not isinstance(ids, dict):
        raise _broken(path, "a vocabulary: {token: id}", str(ids)[:60])
    odd = next((t for t, n in ids.items() if type(n) is not int or not 0 <= n < LIMIT), None)
    if odd is not None:
        raise _broken(path, f"ids from 0 to {LIMIT - 1}", f"{ids[odd]!r:.40} for {odd!r:.40}")
    if len(set(ids.values())) < len(ids):
        first: dict[int, str] = {}
        twice = next(t for t, n in ids.items() if first.setdefault(n, t) != t)
        raise _broken(
            path, "one token for each id", f"{first[ids[twice]]!r:.40} and {twice!r:.40} with id {ids[twice]}"
        )
    return dict(ids)


def _broken(path: Path, wanted: str, found: str) -> ModelError:
    do = "copy the file from the model that this one was made from"
    return ModelError(f"{path} holds no vocabulary that can be read", wanted=wanted, found=found, do=do)


_READERS = {
    "tokenizer.json": _tokenizer_json,
    "vocab.json": _vocab_json,
    "tokenizer.model": _sentencepiece,
    "vocab.txt": _vocab_txt,
}
