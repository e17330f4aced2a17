"""What llama.cpp calls the tensors of a model, and what it does to them when it converts one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOOSE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
#: tensors that hold settings, which the config takes over
SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Family:
    """An architecture of llama.cpp: its class and type in transformers, its own names, what was done to its weights."""

    kind: str
    model_type: str
    names: dict[str, str] = field(default_factory=dict)
    rotated: bool = False  # the rows of q and k are in the order of llama.cpp's rotary embedding
    raised: bool = False  # 1 was added to the weights of norms


#: general.architecture -> family
FAMILIES = {
    "llama": Family("LlamaForCausalLM", "llama", rotated=True),
    "mixtral": Family("MixtralForCausalLM", "mixtral", _MIXTRAL, rotated=True),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2"),
    "qwen2moe": Family("Qwen2MoeForCausalLM", "qwen2_moe"),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": Family("Qwen3MoeForCausalLM", "qwen3_moe"),
    "gemma": Family("GemmaForCausalLM", "gemma", raised=True),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", _FOUR_NORMS, raised=True),
    "gemma3": Family("Gemma3ForCausalLM", "gemma3_text", _FOUR_NORMS, raised=True),
    "phi3": Family("Phi3ForCausalLM", "phi3", {"ffn_up": "mlp.gate_up_proj"}),
}


def stored_name(family: Family, name: str) -> tuple[str, int | None] | None:
    """What llama.cpp calls a tensor of transformers, and which expert's part of it this is; None for a name that is not known."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if match is None:
        return None
    layer, own, kind = match.groups()
    expert = re.search(r"\.experts\.(\d+)\.", own) if layer else None
    if expert:
        own = own.replace(expert[0], ".experts.{}.")
    known = {theirs: ours for ours, theirs in ({**_LAYER, **family.names} if layer else _LOOSE).items()}
    if own not in known:
        return None
    return f"blk.{layer}.{known[own]}.{kind}" if layer else f"{known[own]}.{kind}", int(expert[1]) if expert else None


@dataclass(frozen=True)
class Part:
    """A tensor of the model: which rows of the matrix view of a stored one it is, and its shape."""

    stored: str
    first: int
    shape: tuple[int, ...]
    heads: int = 0  # rows of so many heads are in llama.cpp's order
    lowered: bool = False  # 1 is taken from each entry


def parts(family: Family, name: str, shape: tuple[int, ...], heads: dict[str, int]) -> Iterator[tuple[str, Part]]:
    """The tensors that a stored one is; nothing for a name that is not known. `heads`: attn_q, attn_k -> number of heads."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    known = {**_LAYER, **family.names} if match and match[1] else _LOOSE
    if match is None or match[2] not in known:
        return
    layer, own, kind = match.groups()
    full = f"model.layers.{layer}.{known[own]}.{kind}" if layer else f"{known[own]}.{kind}"
    if "{}" in full:
        rows = shape[-2] if len(shape) == 3 else 0
        for expert in range(shape[0] if rows else 0):
            yield full.format(expert), Part(name, expert * rows, shape[1:])
    elif own == "ffn_gate_inp_shexp":
        yield full, Part(name, 0, (1, shape[-1]))
    else:
        turned = heads.get(own, 0) if family.rotated else 0
        yield full, Part(name, 0, shape, turned, family.raised and full.endswith("norm.weight"))
