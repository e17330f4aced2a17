"""config.json out of the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from plait.checkpoint.gguf.names import Family

#: metadata of llama.cpp, after the architecture's name -> config.json
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
#: where a key is not there, the id is none: a class's own default may lie outside of the vocabulary
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_BIASES = {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}
#: layers of the models of 27 billion parameters, whose attention is scaled by hidden_size / heads
LARGE = {"gemma2": 46, "gemma3_text": 62}


def config(
    family: Family,
    architecture: str,
    field: Callable[[str], Any],
    names: Collection[str],
    vocabulary: int,
    rope: Mapping[str, Any],
) -> dict[str, Any]:
    """The config. `field`: the value of a metadata key, None if it is not there; `names`: the stored tensors;
    `rope`: what tensors tell of the positions.
    """
    made: dict[str, Any] = {"architectures": [family.kind], "model_type": family.model_type}
    for key, name in KEYS.items():
        if (value := field(f"{architecture}.{key}")) is not None:
            made[name] = float(f"{value:.7g}") if isinstance(value, float) else value  # it is a float32
    if "head_dim" not in made and family.rotated and (size := field(f"{architecture}.rope.dimension_count")):
        made["head_dim"] = size
    if experts := field(f"{architecture}.expert_count"):
        made["num_local_experts" if family.model_type == "mixtral" else "num_experts"] = experts
    if family.model_type == "qwen3_moe":
        made["norm_topk_prob"] = True  # as llama.cpp computes; the class's own default is another
    if family.model_type.startswith("gemma") and family.model_type != "gemma" and "head_dim" in made:
        large = made.get("num_hidden_layers") == LARGE[family.model_type]
        heads = made.get("num_attention_heads")
        made["query_pre_attn_scalar"] = made.get("hidden_size", 0) // heads if large and heads else made["head_dim"]
    if family.model_type == "qwen2" or family.model_type.startswith("qwen2_"):
        made.pop("head_dim", None)
    if family.model_type in ("llama", "mixtral", "qwen2", "qwen3") or "moe" in family.model_type:
        made.pop("sliding_window", None)
    made |= {name: field(f"tokenizer.ggml.{key}") for key, name in _TOKENS.items()}
    if not family.model_type.startswith("qwen2"):  # which always has biases, and no such key
        made |= {key: True for key, end in _BIASES.items() if f"blk.0.{end}.bias" in names}
    made |= {"vocab_size": vocabulary, "tie_word_embeddings": "output.weight" not in names}
    kind, factor = field(f"{architecture}.rope.scaling.type"), field(f"{architecture}.rope.scaling.factor")
    original = field(f"{architecture}.rope.scaling.original_context_length")
    if rope:
        made |= rope
        if "original_max_position_embeddings" in rope and original:
            made["original_max_position_embeddings"] = original
    elif factor and kind not in (None, "none", "longrope"):
        made["rope_scaling"] = {"rope_type": kind, "factor": factor}
        if kind == "yarn" and original:
            made["rope_scaling"]["original_max_position_embeddings"] = original
    return made


def llama3(factors: list[float], theta: float, size: int) -> dict[str, Any] | None:
    """The rope_scaling of Llama 3.1 and later that gives these divisors of the frequencies; None if none of them does.

    Their parameters are 1, 4 and 8192; only the factor differs, and is the largest divisor.
    """
    scaling = {"factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    wanted = llama3_divisors(theta, size, 8192, **scaling)
    if any(abs(x - y) > 1e-3 * y for x, y in zip(factors, wanted, strict=True)):
        return None
    return {"rope_scaling": scaling | {"rope_type": "llama3", "original_max_position_embeddings": 8192}}


def llama3_divisors(
    theta: float, size: int, context: int, factor: float, low_freq_factor: float, high_freq_factor: float
) -> list[float]:
    """By what the frequencies of a head of `size` are divided, `size / 2` numbers.

    Source: `_compute_llama3_parameters` of transformers; Llama 3.1, https://arxiv.org/abs/2407.21783
    """
    divisors = []
    for i in range(size // 2):
        length = 2 * math.pi * theta ** (2 * i / size)
        smooth = (context / length - low_freq_factor) / (high_freq_factor - low_freq_factor)
        short, long = length < context / high_freq_factor, length > context / low_freq_factor
        divisors.append(1.0 if short else factor if long else 1 / ((1 - smooth) / factor + smooth))
    return divisors
