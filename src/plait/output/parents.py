"""What the card of a parent states in its front matter: licence, languages, task, its own base. Read as data, in bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LIMIT = 65_536  # bytes of a front matter; real ones have a few hundred
MOST = 100  # entries of a list
DEPTH = 16  # levels; real ones have six, and a reader's time may grow with entries times levels
_KEYS = ("license", "license_name", "pipeline_tag")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LISTS = ("language", "base_model")


def stated(folder: Path | None) -> dict[str, Any]:
    """The keys that README.md in `folder` states, texts as texts and lists as lists of texts; what cannot be read is left out."""
    data = front_matter(folder / "README.md") if folder else {}
    found: dict[str, Any] = {key: text for key in _KEYS if (text := _text(data.get(key)))}
    for key in _LISTS:
        raw = data.get(key)
        entries = [text for item in (raw if isinstance(raw, list) else [raw])[:MOST] if (text := _text(item))]
        if entries:
            found[key] = list(dict.fromkeys(entries))
    return found


def front_matter(card: Path) -> Mapping[str, Any]:
    """The mapping between the first two lines of `---`; empty without one, or if it is not plain and small YAML."""
    try:
        with open(card, "rb") as file:
            text = file.read(LIMIT).decode("utf-8", errors="replace").replace("\r\n", "\n").removeprefix("\ufeff")
    except OSError:
        return {}
    head, end, _ = text[4:].partition("\n---")
    if not text.startswith("---\n") or not end:
        return {}
    try:
        data = yaml.load(head, _Loader) if _small(head) else {}
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        return {}
    return data if isinstance(data, dict) else {}


def _small(text: str) -> bool:
    """Whether the YAML has no aliases, which let a small text stand for a huge one, and few levels."""
    depth = 0
    for event in yaml.parse(text, _Loader):  # events come one by one, as they are read
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEPTH:
            return False
    return True


def _text(value: object) -> str | None:
    """A short text on one line, or None; `no` is YAML for false, and Norwegian."""
    if value is False:
        return "no"
    return value.strip() if isinstance(value, str) and 0 < len(value.strip()) <= 200 and value.isprintable() else None


def agreed(models: list[Mapping[str, Any]], key: str) -> Any:
    """What all models that state `key` state alike; None when none does, or when they differ."""
    values = [model[key] for model in models if key in model]
    return values[0] if values and all(value == values[0] for value in values) else None
