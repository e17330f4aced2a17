"""Which output head and which embedding are one parameter, stored once or twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.arch import names
from plait.arch.quirks import ABSENT_HEADS, HEAD_BESIDE
from plait.types import TensorSpec


def find_ties(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> tuple[str | None, str | None, dict[str, str]]:
    """The token embedding, the output head, and what is tied: head -> embedding, whether or not the file repeats the head.

    Where the config is silent (the default differs from class to class), a head in the file is taken to be its own, and a
    generative class without one to be tied. Encoder and decoder embeddings share `shared.weight` whenever there is one.
    """
    tokens = [n for n in specs if names.TOKENS.search(n) and len(specs[n].shape) == 2 and not names.numbered(n)]
    tokens = [n for n in tokens if not names.words(n) & names.MODALITIES]
    if not tokens:
        return None, None, {}
    shared = next((n for n in tokens if n.endswith("shared.weight")), None)
    embedding = shared or next((n for n in tokens if "decoder" in n), tokens[0])
    tied = {n: embedding for n in tokens if shared and n != shared}
    if shared:
        start = shared.removesuffix("shared.weight")
        tied |= {f"{start}{coder}.embed_tokens.weight": shared for coder in ("encoder", "decoder")}
    flag = config.get("tie_word_embeddings")
    if flag is None:
        inner = (config.get(key) for key in ("text_config", "llm_config", "language_config", "decoder"))
        flag = next((part.get("tie_word_embeddings") for part in inner if isinstance(part, Mapping)), None)
    shape = specs[embedding].shape
    loose = (n for n in specs if n.endswith(".weight") and not names.numbered(n))
    heads = [n for n in loose if specs[n].shape == shape and names.HEAD.search(n)]
    head = heads[0] if heads else _absent_head(specs, config, embedding)
    if head and (flag if heads else flag is not False):
        tied[head] = embedding
    if head and head.endswith(".decoder.weight") and (bias := head.removesuffix("decoder.weight") + "bias") in specs:
        tied[head.removesuffix("weight") + "bias"] = bias
    return embedding, head, tied


def _absent_head(specs: Mapping[str, TensorSpec], config: Mapping[str, Any], embedding: str) -> str | None:
    classes = config.get("architectures") or [""]
    if not str(classes[0]).endswith(("LM", "LMHeadModel", "ConditionalGeneration", "PreTraining", "MTModel")):
        return None
    if beside := next((head for bias, head in HEAD_BESIDE.items() if bias in specs), None):
        return beside
    if named := ABSENT_HEADS.get(str(config.get("model_type"))):
        return named
    root = "language_model." if embedding.startswith("language_model.") else ""
    return f"{root}lm_head.weight"
