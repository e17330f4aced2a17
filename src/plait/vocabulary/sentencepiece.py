"""A SentencePiece model (tokenizer.model) as the tokenizer.json that cuts text as it does.

Read as `sentencepiece_model.proto` of google/sentencepiece (Kudo and Richardson, arXiv:1808.06226) lays it out. No other
package is needed. Merges of a BPE model are not in the file: they are the ways in which two pieces make a third, by its score.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "▁"
LONGEST = 1000  # characters of a piece; those that training makes have 16, by default


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Parts:
    """The parts of a model's file: its pieces by their ids, how they were trained, how text is normalised before."""

    pieces: tuple[Piece, ...]
    trainer: Mapping[int, Any]
    normalizer: Mapping[int, Any]


def parse(raw: bytes) -> Parts:
    """Raises `ValueError`, `IndexError` or `KeyError` for bytes that are no such file."""
    fields = [(number, value) for number, value in _fields(raw) if isinstance(value, memoryview)]
    pieces = []
    for number, value in fields:
        if number == 1:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece[2]) if isinstance(piece.get(2), memoryview) else (0.0,)
            pieces.append(Piece(bytes(memoryview(piece[1])).decode("utf-8"), score, piece.get(3, NORMAL)))
    trainer, normalizer = (
        {k: v for number, value in fields if number == part for k, v in _fields(value)} for part in (2, 3)
    )
    return Parts(tuple(pieces), trainer, normalizer)


def convert(parts: Parts, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """tokenizer.json of a BPE or Unigram model; None for what such a file cannot say exactly.

    `settings`: tokenizer_config.json, which says whether a text begins with bos and ends with eos.
    """
    pieces, trainer, normalizer = parts.pieces, parts.trainer, parts.normalizer
    unknown = next((n for n, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    prefix = normalizer.get(3, 1) == 1
    kinds = {piece.kind for piece in pieces}
    if unknown is None or max(len(piece.text) for piece in pieces) > LONGEST:
        return None
    if not kinds <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}:
        return None
    if normalizer.get(5, 1) != 1 or trainer.get(24, 0) != 0:  # spaces as they are, or after a word
        return None
    if prefix and USER_DEFINED in kinds:  # a space would come before the text after such a token, too
        return None
    model: dict[str, Any]
    if (kind := trainer.get(3, UNIGRAM)) == BPE:
        model = {"type": "BPE", "dropout": None, "unk_token": pieces[unknown].text, "fuse_unk": True}
        model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
        model |= {"vocab": {piece.text: n for n, piece in enumerate(pieces)}, "merges": _merges(pieces)}
    elif kind == UNIGRAM:
        model = {"type": "Unigram", "unk_id": unknown, "vocab": [[piece.text, piece.score] for piece in pieces]}
    else:
        return None
    added = [
        added_token(n, piece.text, special=piece.kind != USER_DEFINED)
        for n, piece in enumerate(pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _steps(normalizer, prefix)},
        "pre_tokenizer": None,
        "post_processor": _ends(pieces, settings),
        "decoder": _decoder(prefix),
        "model": {**model, "byte_fallback": trainer.get(35, 0) == 1},
    }


def added_token(number: int, text: str, special: bool) -> dict[str, Any]:
    """An added token; an ordinary one may hold spaces, and is looked for when they are written as in the pieces."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": number, "content": text, **flags}


def _merges(pieces: tuple[Piece, ...]) -> list[list[str]]:
    known = {piece.text: n for n, piece in enumerate(pieces) if piece.kind == NORMAL}
    found = []
    for text, n in known.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                found.append((-pieces[n].score, n, known[left], known[right]))
    return [[pieces[left].text, pieces[right].text] for _, _, left, right in sorted(found)]


def _steps(normalizer: Mapping[int, Any], prefix: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if isinstance(charsmap := normalizer.get(2), memoryview) and charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if normalizer.get(4, 1) == 1:
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _ends(pieces: tuple[Piece, ...], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """bos before a text and eos after it, as tokenizer_config.json or the class that it names will have it."""
    owner = str(settings.get("tokenizer_class", ""))
    usual = {"bos": owner.startswith(("Llama", "Gemma")), "eos": owner.startswith("T5")}
    found: dict[str, dict[str, Any]] = {}
    for name, usually in usual.items():
        said = settings.get(f"{name}_token", "<s>" if name == "bos" else "</s>")
        text = said.get("content") if isinstance(said, dict) else said
        number = next((n for n, piece in enumerate(pieces) if piece.text == text and piece.kind == CONTROL), None)
        if number is not None and settings.get(f"add_{name}_token", usually):
            found[name] = {"id": text, "ids": [number], "tokens": [text]}
    if not found:
        return None

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        parts = [("bos", None), ("", sequence), ("eos", None)]
        return [
            {"Sequence": {"id": text, "type_id": number}}
            if text
            else {"SpecialToken": {"id": found[name]["id"], "type_id": number}}
            for name, text in parts
            if text or name in found
        ]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {one["id"]: one for one in found.values()},
    }


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protobuf message: whole numbers, and views of the bytes of all else."""
    view, at = memoryview(message), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = view[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number without an end")

    while at < len(view):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire] if wire in (1, 5) else -1
        if size < 0 or at + size > len(view):
            raise ValueError("a field beyond the end")
        yield key >> 3, view[at : at + size]
        at += size
