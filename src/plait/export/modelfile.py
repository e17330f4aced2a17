"""A Modelfile for Ollama: which file, how conversations look, how to sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import read_json
from plait.export.tokens import Vocabulary

#: generation_config.json -> Ollama's parameter
_SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SAMPLING |= {"repetition_penalty": "repeat_penalty"}


def modelfile(name: str, folder: Path, tokens: Vocabulary) -> str:
    """The text of a Modelfile for the GGUF file `name`, beside which it lies."""
    path = folder / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    lines = [f"FROM ./{name}"]
    if given.get("do_sample"):
        lines += [f"PARAMETER {theirs} {given[own]:g}" for own, theirs in _SAMPLING.items() if _number(given.get(own))]
    ends = given.get("eos_token_id")
    rows = ends if isinstance(ends, list) else [ends]
    texts = [tokens.texts[row] for row in rows if isinstance(row, int) and row < len(tokens.texts)]
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in dict.fromkeys(texts)]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
