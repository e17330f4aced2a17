"""A model's tokenizer as the metadata of a GGUF file: tokens, their types, merges or scores, special ids, chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import ModelError
from plait.export import splits
from plait.vocabulary.read import Tokens, read_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
_SPACE = "\u2581"  # ▁, which SentencePiece writes for a space


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokens: one text, type and score (SentencePiece) a row of the embedding."""

    model: str  # gpt2 (byte-level BPE) or llama (SentencePiece)
    pre: str
    texts: list[str]
    types: list[int]
    scores: list[float] | None
    space: bool  # a space is put before a text
    special: Any  # gguf.SpecialVocab: merges, special ids, chat template
    strips: bool  # added tokens take the space after them
    notes: tuple[str, ...]

    def add_to(self, writer: Any) -> None:
        """Put it into the metadata of a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.texts)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space)
        self.special.add_to_gguf(writer, quiet=True)


def vocabulary(folder: Path, rows: int, pre: str | None = None) -> Vocabulary:
    """The tokenizer of a model folder, for an embedding of `rows` rows.

    `pre`: llama.cpp's name of the pre-tokenizer, for one that plait does not know. Raises `ModelError` when there is no
    tokenizer.json, or one of a kind that GGUF has no place for.
    """
    tokens = read_tokens(folder)
    if tokens is None or tokens.data is None:
        raise ModelError(
            f"{folder} has no tokenizer.json",
            wanted="the tokenizer, which a GGUF file holds too",
            found=tokens.path.name if tokens else "no tokenizer",
            do="save the tokenizer with transformers, AutoTokenizer.from_pretrained(…).save_pretrained(…), which makes one",
        )
    data, model = tokens.data, tokens.data["model"]
    pieces = bool(model.get("byte_fallback"))
    if tokens.kind != "BPE" or not (pieces or _byte_level(data)):
        raise _unknown(tokens, "byte-level BPE, or BPE made from SentencePiece", f"{tokens.kind}")
    texts, types = _texts(tokens, rows, pieces)
    notes = []
    if beyond := [text for text, n in tokens.ids.items() if n >= rows]:
        notes.append(f"{len(beyond)} tokens have no row in the embedding and are left out: {', '.join(beyond[:3])}")
    scores, space = None, False
    if pieces:
        if pre not in (None, "default"):
            what, do = "a SentencePiece tokenizer has no pre-tokenizer", "leave --pre out"
            raise ModelError(what, wanted="default", found=str(pre), do=do)
        pre, scores, (space, told) = "default", _scores(model, texts, types), _space(tokens)
        notes += [*told, *_other_ways(model)]
    elif pre is None:
        pre, told = _split(tokens)
        notes += told
    special = _special(folder, rows, keep=not pieces)
    _ends(tokens, special, rows)
    strips = any(entry.get("rstrip") for entry in tokens.added.values())
    return Vocabulary("llama" if pieces else "gpt2", pre, texts, types, scores, space, special, strips, tuple(notes))


def _texts(tokens: Tokens, rows: int, pieces: bool) -> tuple[list[str], list[int]]:
    assert tokens.data
    unknown = tokens.data["model"].get("unk_token")
    texts, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for text, row in tokens.ids.items():
        if row >= rows:
            continue
        texts[row], types[row] = text, NORMAL
        if entry := tokens.added.get(text):
            types[row] = CONTROL if entry.get("special") else USER_DEFINED
            if pieces and not entry.get("special") and entry.get("normalized", True):
                texts[row] = text.replace(_SPACE, " ")  # llama.cpp looks for it in the text as it was given
        if text == unknown and pieces:
            types[row] = UNKNOWN
        elif pieces and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            types[row] = BYTE
    return texts, types


def _scores(model: Mapping[str, Any], texts: list[str], types: list[int]) -> list[float]:
    """The earlier a piece is merged, the higher: llama.cpp merges in the order of the scores."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    last = len(ranks) + 1.0
    return [
        -1000.0
        if kind in (CONTROL, USER_DEFINED)
        else 0.0
        if kind in (BYTE, UNKNOWN)
        else -float(ranks.get(text, last))
        for text, kind in zip(texts, types, strict=True)
    ]


def _other_ways(model: Mapping[str, Any]) -> list[str]:
    """llama.cpp joins any two pieces that make a third; this tokenizer, only those of its merges."""
    vocab = model["vocab"]
    ways = sum(text[:i] in vocab and text[i:] in vocab for text in vocab for i in range(1, len(text)))
    more = ways - len(model["merges"])
    told = f"llama.cpp joins pieces in {more} more ways than the tokenizer has merges: some words may be cut otherwise"
    return [told] if more > len(model["merges"]) // 100 else []  # "<0x0A>" is a text, too: a few more are no sign


def _space(tokens: Tokens) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, and notes; refused are steps that llama.cpp does not take."""
    assert tokens.data
    found, told = False, []
    for part in (*_parts(tokens.data.get("normalizer"), "normalizers"), *_parts(tokens.data.get("pre_tokenizer"))):
        if part["type"] == "Prepend" and part.get("prepend") == _SPACE:
            found = True
        elif part["type"] == "Metaspace" and part.get("replacement") == _SPACE:
            if (scheme := part.get("prepend_scheme", "always")) != "never":
                found = True
                after = ", and after each special token" if scheme == "first" else ""
                told.append(
                    f"llama.cpp puts a space before a text that begins with one too{after}; the tokenizer does not"
                )
        elif not (part["type"] in ("Replace", "Split") and (part.get("pattern") or {}).get("String") == " "):
            raise _unknown(tokens, "spaces as ▁, and no other change of the text", str(part["type"]))
    return found, told


def _split(tokens: Tokens) -> tuple[str, list[str]]:
    assert tokens.data
    for part in _parts(tokens.data.get("normalizer"), "normalizers"):
        if part["type"] != "NFC":
            raise _unknown(tokens, "no change of the text before it is cut", str(part["type"]))
    if (found := splits.name(tokens.data)) is None:
        raise ModelError(
            f"{tokens.path} cuts a text in a way that plait has no name of llama.cpp's for",
            wanted="the way of " + ", ".join(dict.fromkeys(splits.NAMES.values())),
            found=str(tokens.data.get("pre_tokenizer"))[:120],
            do="pass --pre NAME if you know the name (tokenizer.ggml.pre)",
        )
    name, exact = found
    whole = "takes words that are tokens whole" if tokens.data["model"].get("ignore_merges") else "merges every word"
    return name, [] if exact else [
        f"the tokenizer {whole}, which llama.cpp does not with {name}: rare words may differ"
    ]


def _parts(part: Any, inner: str = "pretokenizers") -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    return [found for one in part[inner] for found in _parts(one, inner)] if part["type"] == "Sequence" else [part]


def _byte_level(data: Mapping[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(data.get("pre_tokenizer")))


def _special(folder: Path, rows: int, keep: bool) -> Any:
    """Special ids, the chat template, and with `keep` the merges, as the gguf package finds them."""
    import gguf

    log = logging.getLogger("gguf.vocab")
    before, log.disabled = log.disabled, True  # what it would say of odd templates is settled in `_ends`
    try:
        special = gguf.SpecialVocab(folder, load_merges=keep, n_vocab=rows)
        if not all(isinstance(merge, str) for merge in special.merges):
            raise ValueError("merges of several kinds")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{folder} has a tokenizer that cannot be read",
            wanted="tokenizer files as transformers writes them",
            found=str(error)[:120],
            do="copy the tokenizer files of the model that it was made from into its folder",
        ) from error
    finally:
        log.disabled = before
    if (file := folder / "chat_template.jinja").is_file():  # which is the one that transformers takes
        special.chat_template = file.read_text("utf-8")
    return special


def _ends(tokens: Tokens, special: Any, rows: int) -> None:
    """Ids that are not among the added tokens; whether a text begins with bos and ends with eos, which must be told."""
    for name, text in tokens.named.items():
        row = tokens.ids.get(text)
        if row is not None and row < rows and name in special.special_token_types:
            special.special_token_ids[name] = row
    for name in ("bos", "eos"):
        if special.special_token_ids.get(name) is None:
            special.add_special_token[name] = False
        special.add_special_token.setdefault(name, False)


def _unknown(tokens: Tokens, wanted: str, found: str) -> ModelError:
    return ModelError(
        f"{tokens.path} is a tokenizer that plait cannot put into a GGUF file",
        wanted=wanted,
        found=found,
        do="write the merge with plait merge, and convert it with llama.cpp's convert_hf_to_gguf.py",
    )
