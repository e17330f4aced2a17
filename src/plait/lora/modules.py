"""What of a model an adapter can hold as factors, what only as a whole, and what not at all; from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from plait.arch import Architecture
from plait.types import TensorSpec

Kind = Literal["matrix", "conv", "table"]

_TABLE = re.compile(r"(?:^|_)embed|embeddings?$|^w[tp]e$|^shared$|relative_attention_bias")
_NOT_TABLE = re.compile(r"(?:^|_)embed_out$")  # the head of GPT-NeoX
#: what transformers calls the part of a class with a head that older files leave out of their names
_INNER = {"gpt2": "transformer.", "bloom": "transformer.", "opt": "model.", "gpt_neox": "gpt_neox.", "bert": "bert."}


def kind_of(name: str, spec: TensorSpec) -> Kind | None:
    """How the factors of a tensor are laid out, None where it has none: a norm, a bias, experts in one tensor."""
    module = name.removesuffix(".weight")
    if module == name or not spec.floating:
        return None
    last = module.rpartition(".")[2]
    if len(spec.shape) == 2:
        return "table" if _TABLE.search(last) and not _NOT_TABLE.search(last) else "matrix"
    return "conv" if len(spec.shape) == 4 and spec.shape[1] > 1 else None


def turned(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether linear layers are stored as [in, out], as GPT-2's are: their biases are as long as their second side."""
    votes = [
        bias.shape == spec.shape[1:]
        for name, spec in specs.items()
        if kind_of(name, spec) == "matrix" and spec.shape[0] != spec.shape[1]
        if (bias := specs.get(name.removesuffix("weight") + "bias")) is not None
    ]
    return sum(votes) > len(votes) / 2


def is_embedding(name: str, kind: Kind | None, arch: Architecture) -> bool:
    """Whether a tensor is an embedding or the head, which adapters hold as a whole unless one asks for factors."""
    return kind == "table" or name in (arch.embedding, arch.head)


def prefix(names: Collection[str], config: Mapping[str, object]) -> str:
    """What transformers has before the names that these files have."""
    classes = config.get("architectures")
    headed = isinstance(classes, list) and any("For" in str(c) or "LMHead" in str(c) for c in classes)
    inner = _INNER.get(str(config.get("model_type")), "")
    return "" if not headed or any(name.startswith(inner) for name in names) else inner


def listed(chosen: Iterable[str], others: Iterable[str], dotted: bool = True) -> list[str]:
    """Names for PEFT's lists that fit the ends of the chosen modules' names, and of no others; short where that is possible.

    `dotted`: an end begins after a dot, as for target_modules; for modules_to_save any end counts.
    """
    chosen, others = list(chosen), list(others)
    found: dict[str, None] = {}
    for module in chosen:
        last = module.rpartition(".")[2]
        clash = any(o == last or o.endswith(f".{last}" if dotted else last) for o in others)
        found.setdefault(module if clash else last)
    return list(found)


def fits(module: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.search(module) for pattern in patterns)
