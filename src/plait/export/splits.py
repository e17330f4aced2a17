"""How llama.cpp calls the ways in which byte-level BPE tokenizers cut a text into words before they merge bytes.

A tokenizer.json says it in regular expressions; GGUF, in a name (`tokenizer.ggml.pre`), behind which llama.cpp has the
expressions in its own code. Reference: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: the expressions of a pre-tokenizer in order, and whether words that are tokens are taken whole -> llama.cpp's name
NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("digits", _GPT2), False): "smollm",
    ((_WORDS + r"\p{N}{1,3}|" + _END,), True): "llama-bpe",
    ((_WORDS + r"\p{N}{1,3}|" + _END,), False): "dbrx",
    ((_WORDS + r"\p{N}|" + _END,), False): "qwen2",
    ((_UPPER + "|" + _LOWER + r"|\p{N}" + _SLASH,), True): "tekken",
    ((_UPPER + _SHORT + "|" + _LOWER + _SHORT + r"|\p{N}{1,3}" + _SLASH,), False): "gpt-4o",
}


def name(tokenizer: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The name for a tokenizer.json of byte-level BPE, and whether words that are tokens are taken whole as there.

    None where plait knows none.
    """
    found = tuple(_expressions(tokenizer.get("pre_tokenizer")))
    whole = bool(tokenizer["model"].get("ignore_merges"))
    return next(((NAMES[found, w], w == whole) for w in (whole, not whole) if (found, w) in NAMES), None)


def _expressions(part: Any) -> Iterator[str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "Sequence":
        for inner in part["pretokenizers"]:
            yield from _expressions(inner)
    elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        yield str(part["pattern"].get("Regex"))
    elif kind == "Digits" and part.get("individual_digits"):
        yield "digits"
    elif kind == "ByteLevel" and not part.get("add_prefix_space"):
        yield from [_GPT2] if part.get("use_regex", True) else []
    else:
        yield f"unknown: {kind}"
