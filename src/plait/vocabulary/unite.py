"""One vocabulary out of several: the base's tokens with their ids, and what other models have that can be used.

A token is added only if text becomes it, and no text that the base has tokens for may become anything else. So of another
model are added its markers (`<|im_start|>`: added tokens that are special, or set off by punctuation) and those of its
ordinary tokens that hold a character (in a vocabulary of whole words: a word) for which the base has no token. Merges and
scores come along, after the base's own. What the tokenizer so made does not produce when it is tried out is left out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from plait.errors import ModelError
from plait.vocabulary.read import Tokens, kind_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
_MARKER = re.compile(r"[^\w\s▁](?:\S*[^\w\s▁])?")


@dataclass(frozen=True)
class United:
    """A united vocabulary, and of each other model the markers and the ordinary tokens that were added."""

    tokens: Tokens
    markers: tuple[tuple[str, ...], ...]
    pieces: tuple[tuple[str, ...], ...]


def unite(base: Tokens, others: Sequence[Tokens]) -> United:
    """The base's vocabulary with what can be used of the others', in their order and by their ids; the same each time.

    Raises `ModelError` when something is to be added to a base without tokenizer.json.
    """
    markers: dict[str, tuple[int, Mapping[str, Any]]] = {}
    pieces: dict[str, int] = {}
    for i, other in enumerate(others):
        lacking = sorted((n, text) for text, n in other.ids.items() if text not in base.ids)
        wanted = _ordinary(base, other)
        for _, text in lacking:
            entry = other.added.get(text)
            if entry is None and wanted and wanted(text):
                pieces.setdefault(text, i)
            elif entry is not None and (entry.get("special") or _MARKER.fullmatch(text)):
                markers.setdefault(text, (i, entry))
    pieces = {text: i for text, i in pieces.items() if text not in markers}
    made = base
    while markers or pieces:
        made = extend(
            base, {text: entry for text, (_, entry) in markers.items()}, [(t, others[i]) for t, i in pieces.items()]
        )
        produced = _produced(made, markers, [(text, others[i]) for text, i in pieces.items()])
        if all(text in produced for text in (*markers, *pieces)):
            break
        markers = {text: found for text, found in markers.items() if text in produced}
        pieces = {text: i for text, i in pieces.items() if text in produced}
        made = base
    return United(
        made,
        tuple(tuple(t for t, (j, _) in markers.items() if j == i) for i in range(len(others))),
        tuple(tuple(t for t, j in pieces.items() if j == i) for i in range(len(others))),
    )


def extend(base: Tokens, markers: Mapping[str, Mapping[str, Any]], pieces: Sequence[tuple[str, Tokens]] = ()) -> Tokens:
    """The vocabulary with more tokens after its own: ordinary ones, each with the model it is from, then added tokens."""
    if not markers and not pieces:
        return base
    if base.data is None:
        raise _older(f"no token can be added to {base.path}", base)
    first = base.size
    numbers = {text: first + k for k, text in enumerate([*(text for text, _ in pieces), *markers])}
    entries = [{**FLAGS, **entry, "id": numbers[t], "content": t, "normalized": False} for t, entry in markers.items()]
    ids = {**base.ids, **numbers}
    model = dict(base.data["model"])
    vocab = model["vocab"]
    gaps = isinstance(vocab, dict) and max(vocab.values(), default=-1) + 1 != len(vocab)
    if pieces or gaps:  # the loader numbers added tokens itself unless the model's vocabulary has them
        texts = {n: text for text, n in ids.items()}
        if isinstance(vocab, dict):
            model["vocab"] = {**vocab, **{text: ids[text] for text in (*base.added, *numbers)}}
        else:
            scores = {text: score for text, origin in pieces for score in [_score(origin, text)]}
            low = min((entry[1] for entry in vocab), default=0.0) - 100.0
            model["vocab"] = [
                vocab[n] if n < len(vocab) else [texts.get(n, f"<unused {n}>"), scores.get(texts.get(n, ""), low)]
                for n in range(first + len(pieces))
            ]
        if "merges" in model:
            model["merges"] = [*model["merges"], *_merges(base, pieces, ids)]
    data = {**base.data, "model": model, "added_tokens": [*(base.data.get("added_tokens") or []), *entries]}
    added = {**base.added, **{entry["content"]: entry for entry in entries}}
    return replace(base, ids=ids, added=added, data=data)


def strip(tokens: Tokens, rows: int) -> Tokens:
    """The vocabulary without the tokens whose ids have no row in matrices of so many rows."""
    if tokens.size <= rows:
        return tokens
    ids = {text: n for text, n in tokens.ids.items() if n < rows}
    added = {text: entry for text, entry in tokens.added.items() if text in ids}
    data = tokens.data
    if data is not None:
        model, prefix = dict(data["model"]), str(data["model"].get("continuing_subword_prefix") or "")
        vocab = model["vocab"]
        model["vocab"] = {t: n for t, n in vocab.items() if t in ids} if isinstance(vocab, dict) else vocab[:rows]
        if "merges" in model and len(model["vocab"]) < len(vocab):
            model["merges"] = [m for m in model["merges"] if {*_pair(m), _merged(_pair(m), prefix)} <= ids.keys()]
        kept = [entry for entry in data.get("added_tokens") or [] if entry["content"] in ids]
        data = {**data, "model": model, "added_tokens": kept}
    named = {key: text for key, text in tokens.named.items() if text in ids}
    return replace(tokens, ids=ids, added=added, data=data, named=named)


def loaded(tokens: Tokens) -> Tokenizer:
    """The tokenizer that works with these tokens; `ModelError` when it cannot be, or gives a token another id."""
    from tokenizers import Tokenizer

    if tokens.data is None:
        raise _older(f"{tokens.path} does not say how a text becomes tokens", tokens)
    try:
        made = Tokenizer.from_str(json.dumps(tokens.data, ensure_ascii=False))
    except Exception as error:  # the library raises nothing narrower
        what, do = f"{tokens.path} cannot be used", "copy it from the model that this one was made from"
        raise ModelError(what, wanted="a tokenizer.json", found=str(error)[:120], do=do) from error
    given = made.get_vocab(with_added_tokens=True)
    wrong = next((text for text, n in tokens.ids.items() if given.get(text) != n), None)
    if wrong is not None:
        raise ModelError(
            f"{tokens.path} is not loaded as it is written",
            wanted=f"{wrong!r} with id {tokens.ids[wrong]}",
            found=f"id {given.get(wrong)}",
            do="load it with transformers and save it again",
        )
    return made


def encoded(
    tokens: Tokens, texts: Sequence[str], *, special: bool = False, reader: Tokenizer | None = None
) -> list[Any]:
    """The texts as tokens; `reader`: the tokenizer, if it is loaded. Raises as `loaded` does, and `ModelError` for a text with
    letters for which there is no token, not even one for the unknown."""
    reader = reader or loaded(tokens)
    try:
        return list(reader.encode_batch_fast(list(texts), add_special_tokens=special))
    except Exception as error:  # as above
        what, do = f"{tokens.path} cannot read a text", "give it the unk_token of the model that this one was made from"
        wanted = "a token for what it does not know"
        raise ModelError(what, wanted=wanted, found=str(error)[:120], do=do) from error


def _older(what: str, tokens: Tokens) -> ModelError:
    do = "make one with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)"
    return ModelError(what, wanted="tokenizer.json", found=f"{tokens.path.name} only", do=do)


def _ordinary(base: Tokens, other: Tokens) -> Callable[[str], bool] | None:
    """What tells the ordinary tokens of another model that may be added; None where none may."""
    if base.data is None or other.data is None or _style(base.data) != _style(other.data):
        return None
    model = base.data["model"]
    if kind_of(model) == "WordLevel":
        return lambda text: True
    if isinstance(model["vocab"], list) and base.size != len({*range(len(model["vocab"])), *base.ids.values()}):
        return None  # a list has no place for ids that no token has
    known = {char for text in base.ids if text not in base.added for char in text}
    spelt = bool(model.get("byte_fallback"))

    def knows(char: str) -> bool:
        return char in known or (spelt and all(f"<0x{byte:02X}>" in base.ids for byte in char.encode("utf-8")))

    foreign = {char for text in other.ids for char in text if not knows(char)}
    return (lambda text: not foreign.isdisjoint(text)) if foreign else None


def _style(data: Mapping[str, Any]) -> tuple[object, ...]:
    """What two tokenizers share when their tokens are spelt alike."""
    steps = json.dumps([data.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
    model = data["model"]
    marks = [model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    return kind_of(model), "ByteLevel" in steps, *marks


def _produced(tokens: Tokens, markers: Iterable[str], pieces: Sequence[tuple[str, Tokens]]) -> set[str]:
    """The tokens that come up when the tokenizer reads each new token's text, alone or, if need be, in some surroundings."""
    tokenizer = loaded(tokens)
    found: set[int] = set()

    def read(texts: Sequence[str]) -> None:
        found.update(n for encoding in encoded(tokens, texts, reader=tokenizer) for n in encoding.ids)

    read(list(markers))
    readers = {key: loaded(origin) for key, origin in {id(origin): origin for _, origin in pieces}.items()}
    left = [
        (text, readers[id(origin)].decode([origin.ids[text]], skip_special_tokens=False), _bare(text, tokens))
        for text, origin in pieces
    ]
    for around in ("{0}", "{1}", " {0}", "a{0}", "a{1}", "a {1}"):
        read([around.replace("{0}", said).replace("{1}", bare) for _, said, bare in left])
        left = [each for each in left if tokens.ids[each[0]] not in found]
    if any(len(text) == 1 for text, _, _ in left):  # single bytes come up in other characters only
        read([chr(n) for n in (*range(1, 0x800), *range(0x800, 0xD800, 37), *range(0xE000, 0x110000, 4001))])
    return {text for text, n in tokens.ids.items() if n in found}


def _bare(text: str, tokens: Tokens) -> str:
    model = tokens.data["model"] if tokens.data else {}
    bare = text.removeprefix(model.get("continuing_subword_prefix") or "")
    return bare.removesuffix(model.get("end_of_word_suffix") or "").replace("▁", " ")


def _score(origin: Tokens, text: str) -> float:
    assert origin.data is not None
    return float(origin.data["model"]["vocab"][origin.ids[text]][1])


def _merges(base: Tokens, pieces: Sequence[tuple[str, Tokens]], ids: Mapping[str, int]) -> list[list[str]]:
    """The merges that make the new pieces, in their models' order, as the base's file spells merges."""
    new = {text for text, _ in pieces}
    assert base.data is not None
    prefix = str(base.data["model"].get("continuing_subword_prefix") or "")
    found: dict[tuple[str, str], None] = {}
    for origin in {id(origin): origin for _, origin in pieces}.values():
        assert origin.data is not None
        for pair in map(_pair, origin.data["model"].get("merges") or []):
            if _merged(pair, prefix) in new and pair[0] in ids and pair[1] in ids:
                found[pair] = None
    merges = base.data["model"]["merges"]
    return [f"{a} {b}" if merges and isinstance(merges[0], str) else [a, b] for a, b in found]  # type: ignore[misc]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    a, b = merge.split(" ", 1) if isinstance(merge, str) else merge
    return a, b


def _merged(pair: tuple[str, str], prefix: str) -> str:
    return pair[0] + pair[1].removeprefix(prefix)
