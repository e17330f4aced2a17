"""The files of a tokenizer whose tokens are not those of the folder that it is from, and ids in configs that follow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.arch.anatomy import integers
from plait.checkpoint.directory import read_json
from plait.errors import ModelError
from plait.vocabulary.read import Tokens

#: other forms of the vocabulary, which cannot hold what tokenizer.json holds now
STALE = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
#: keys of a config that hold ids of tokens
_IDS = ("_token_id", "_token_ids", "_token_index", "suppress_tokens")


def tokenizer_files(old: Tokens, new: Tokens) -> dict[str, str | None]:
    """File name -> its text, or None for a file to leave out, of each file that `new` makes differ from `old`'s folder."""
    if new.ids == old.ids and new.added == old.added:
        return {}
    folder = old.path.parent
    files: dict[str, str | None] = {}
    ordinary = {
        text for text in {*old.ids, *new.ids} - {*old.added, *new.added} if old.ids.get(text) != new.ids.get(text)
    }
    if new.data is not None:
        files["tokenizer.json"] = text_of(new.data)
    elif ordinary:
        raise ModelError(
            f"{old.path} holds tokens without a row in the model",
            wanted="tokenizer.json, from which they can be taken",
            found=f"{old.path.name}, and {len(ordinary)} such tokens",
            do="make one with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)",
        )
    if ordinary or (new.data is not None and old.path.name != "tokenizer.json"):
        files |= {name: None for name in STALE if (folder / name).is_file()}
    if (path := folder / "added_tokens.json").is_file():
        before = set(read_json(path))
        kept = {t: n for t, n in new.ids.items() if t in before or (t in new.added and t not in old.ids)}
        files["added_tokens.json"] = text_of(kept)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path := folder / name).is_file():
            files[name] = text_of(_settings(read_json(path), old, new))
    return files


def text_of(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _settings(settings: dict[str, Any], old: Tokens, new: Tokens) -> dict[str, Any]:
    """tokenizer_config.json without the tokens that are gone, and with those that came."""
    gone = old.ids.keys() - new.ids.keys()

    def kept(entry: object) -> bool:
        text = entry.get("content") if isinstance(entry, dict) else entry
        return not (isinstance(text, str) and text in gone)

    out: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "added_tokens_decoder" and isinstance(value, dict):
            came = (entry for text, entry in new.added.items() if text not in old.ids)
            known = {number: entry for number, entry in value.items() if kept(entry)}
            value = {str(new.ids.get(_content(e), number)): e for number, e in known.items()}
            value |= {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in came}
        elif key.endswith("special_tokens") and isinstance(value, list):
            value = [entry for entry in value if kept(entry)]
        elif key.endswith("special_tokens") and isinstance(value, dict):
            value = {name: entry for name, entry in value.items() if kept(entry)}
        elif key.endswith("_token") and not kept(value):
            continue
        out[key] = value
    return out


def _content(entry: object) -> str:
    return str(entry.get("content")) if isinstance(entry, dict) else str(entry)


def named_ids(tokens: Tokens, folder: Path | None) -> dict[str, int | list[int]]:
    """bos, eos, pad, … -> the id that a model's tokenizer gives it, or the list with it of its generation_config.json."""
    path = folder / "generation_config.json" if folder else None
    said = read_json(path) if path and path.is_file() else {}
    found: dict[str, int | list[int]] = {}
    for name, text in tokens.named.items():
        if text in tokens.ids:
            ids = said.get(f"{name}_token_id")
            found[name] = ids if isinstance(ids, list) and tokens.ids[text] in ids else tokens.ids[text]
    return found


def follow(
    config: Mapping[str, Any], moved: Mapping[int, int | None], named: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """A config whose ids of tokens are those of the output: `named` by their roles, others as they `moved`.

    An id whose token is not in the output (`moved` to None) becomes null, or leaves its list.
    """
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            value = follow(value, moved, named)
        elif (role := key.removesuffix("_token_id")) in named and key != role and value is not None:
            value = named[role]
        elif key.endswith(_IDS) and type(value) is int:
            value = moved.get(value, value)
        elif key.endswith(_IDS) and isinstance(value, list):
            value = [moved.get(n, n) if type(n) is int else n for n in value]
            value = [n for n in value if n is not None]
        out[key] = value
    return out


def sized(config: Mapping[str, Any], old: int, rows: int) -> dict[str, Any]:
    """A config with the new vocabulary size in place of the old one, wherever that stands."""
    single = sum(path[-1] == "vocab_size" for path, _ in integers(config)) == 1

    def mended(part: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in part.items():
            if isinstance(value, Mapping):
                value = mended(value)
            elif key == "vocab_size" and (value == old or single):
                value = rows
            out[key] = value
        return out

    return mended(config)
