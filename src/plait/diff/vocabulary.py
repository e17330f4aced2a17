"""What models say beside their weights: tokens, special tokens, chat template, settings. Files are read as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import read_json
from plait.diff.sides import Side

#: settings that change what the same weights compute
SETTINGS = (
    *("model_type", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters"),
    *("sliding_window", "tie_word_embeddings", "attention_bias", "num_experts_per_tok", "logit_scale"),
    *("final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar", "embedding_multiplier"),
)
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Words:
    """One model's: token -> id (None: no tokenizer.json), how text is cut, special tokens, chat template, settings."""

    tokens: Mapping[str, int] | None
    cutting: str
    special: Mapping[str, str]
    template: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class WordsDiffer:
    """A model against the first. Counts of tokens: with the same id, with another id, only in the first, only in this one."""

    tokens: tuple[int, int, int, int] | None  # None: one of them has no tokenizer.json
    cutting: bool  # merges, normaliser and pre-tokeniser are the same
    special: Mapping[str, tuple[str | None, str | None]]
    template: str  # same, neither, differ, only in the first, only in the other
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def same_tokens(self) -> bool:
        return self.tokens is None or not any(self.tokens[1:])


def words(side: Side) -> Words:
    """Read the side files of a model; raises `ModelError` for one that is not JSON."""
    folder = side.folder
    tokenizer, settings = _json(folder, "tokenizer.json"), _json(folder, "tokenizer_config.json")
    config = side.checkpoint.config
    inner = config.get("text_config")
    flat = {**config, **(inner if isinstance(inner, Mapping) else {})}
    special = {key: _content(settings[key]) for key in SPECIAL if settings.get(key)}
    return Words(
        tokens=_tokens(tokenizer) if tokenizer else None,
        cutting=_cutting(tokenizer),
        special=special,
        template=_template(folder, settings),
        settings={key: flat[key] for key in SETTINGS if flat.get(key) is not None},
    )


def against(first: Words, other: Words) -> WordsDiffer:
    """How one model's words differ from the first one's."""
    counts = None
    if first.tokens is not None and other.tokens is not None:
        a, b = first.tokens, other.tokens
        same = sum(b.get(token) == at for token, at in a.items())
        both = sum(token in b for token in a)
        counts = (same, both - same, len(a) - both, len(b) - both)
    one, two = first.template, other.template
    template = "differ" if one and two else "only in the first" if one else "only in the other"
    return WordsDiffer(
        tokens=counts,
        cutting=first.cutting == other.cutting or not (first.cutting and other.cutting),
        special={k: (first.special.get(k), other.special.get(k)) for k in SPECIAL if _apart(k, first, other)},
        template=("same" if one else "neither") if one == two else template,
        settings={
            k: (first.settings.get(k), other.settings.get(k))
            for k in SETTINGS
            if first.settings.get(k) != other.settings.get(k)
        },
    )


def _apart(key: str, first: Words, other: Words) -> bool:
    return first.special.get(key) != other.special.get(key)


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    return read_json(folder / name) if folder and (folder / name).is_file() else {}


def _tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    found: dict[str, int] = {}
    if isinstance(vocab, Mapping):
        found = {token: at for token, at in vocab.items() if isinstance(at, int)}
    elif isinstance(vocab, list):  # Unigram: pairs of token and score
        found = {str(entry[0]): at for at, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            found[str(entry.get("content"))] = entry["id"]
    return found


def _cutting(tokenizer: Mapping[str, Any]) -> str:
    model = tokenizer.get("model")
    merges = model.get("merges") if isinstance(model, Mapping) else None
    parts = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"), merges]
    return json.dumps(parts, sort_keys=True) if tokenizer else ""


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, Mapping) else str(token)


def _template(folder: Path | None, settings: Mapping[str, Any]) -> str | None:
    if folder and (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8", errors="replace")
    written = settings.get("chat_template") or _json(folder, "chat_template.json").get("chat_template")
    return written if isinstance(written, str) else json.dumps(written) if written else None
