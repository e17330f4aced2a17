"""What the rules of `arch` and `config` do not find by themselves, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Config keys that count the extra layers (multi-token prediction) stored after the layers that the layer count counts:
#: DeepSeek-V3, GLM-4-MoE, MiMo, … keep `model.layers.61` beside `num_hidden_layers: 61`.
EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers")

#: `model_type` -> name of the tied output head that is not in the file, where no neighbour gives it away.
ABSENT_HEADS = {
    "distilbert": "vocab_projector.weight",
    "electra": "generator_lm_head.weight",
    "flaubert": "pred_layer.proj.weight",
    "gpt_neox": "embed_out.weight",
    "modernbert": "decoder.weight",
    "whisper": "proj_out.weight",
    "xlm": "pred_layer.proj.weight",
    "xlnet": "lm_loss.weight",
}

#: A bias in the file -> the tied head weight that it belongs to.
HEAD_BESIDE = {
    "cls.predictions.bias": "cls.predictions.decoder.weight",
    "predictions.bias": "predictions.decoder.weight",
    "lm_head.layer_norm.weight": "lm_head.decoder.weight",
    "vocab_projector.bias": "vocab_projector.weight",
    "generator_lm_head.bias": "generator_lm_head.weight",
    "decoder.bias": "decoder.weight",
}

#: Spellings of older files -> those of current ones, in this order; two names are one tensor if they are then the same.
SPELLINGS = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"\bLayerNorm\.gamma$", "LayerNorm.weight"),
        (r"\bLayerNorm\.beta$", "LayerNorm.bias"),
        (r"\.block_sparse_moe\.gate\.", ".mlp.gate."),
        (r"\.block_sparse_moe\.experts\.", ".mlp.experts."),
        (r"\bvision_tower\.vision_model\.", "vision_tower."),
        (r"^embed_out\.", "lm_head."),
        (r"\.parametrizations\.weight\.original0$", ".weight_g"),
        (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    )
)

_MIXTRAL, _QWEN = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
#: `model_type` of models that transformers reads both with a tensor for each expert and fused -> what gate, up and down are
#: called in the former; the renames that fusing brings along, from split to fused.
EXPERTS: dict[str, tuple[tuple[str, str, str], tuple[tuple[str, str], ...]]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), (_MIXTRAL, ((".block_sparse_moe.", ".mlp."),))),
    "phimoe": (_MIXTRAL, ((".block_sparse_moe.gate.", ".mlp.router."), (".block_sparse_moe.", ".mlp."))),
    "lfm2_moe": (_MIXTRAL, ()),
    **dict.fromkeys(
        (
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe_text",
            "afmoe",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
        ),
        (_QWEN, ()),
    ),
    **dict.fromkeys(("dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite"), (_QWEN, ())),
    **dict.fromkeys(("glm4v_moe", "hunyuan_v1_moe", "jamba", "longcat_flash", "olmoe", "solar_open"), (_QWEN, ())),
}

#: Config keys whose list (or string of one letter a layer) says something about each layer.
PER_LAYER = re.compile(
    r"^_?(?:layer_types|mlp_layer_types|layers?_block_types?|layer_block_types?|block_configs|indexer_types|attention_layers|attn_type_list"
    r"|no_rope_layers|activation_sparsity_pattern|moe_layer_freq|hybrid_(?:override|layer)_pattern|layer_pattern|sliding_window_pattern"
    r"|attention_pattern|swiglu_limits(?:_shared)?|compress_ratios|\w*per_layer\w*|num_(?:attention|key_value|query|kv)_heads|head_dim"
    r"|(?:moe_)?intermediate_size|ffn_multipliers|sliding_windows?|partial_rotary_factors?|rope_theta\w*|attn_layers_types?|use_rope_layers)$"
)
#: Config keys whose list of integers names layers.
INDICES = re.compile(
    r"^(?:\w*_layers|(?:\w*_)?(?:layer_ids|layer_idx|layer_indices|layers_indices|layers_enum|attn_idxs|attn_indexes|visual_indexes)"
    r"|(?:fullatt|window|global_attn|local_attn)\w*_(?:indexes|indices)|global_attn_indexes|slstm_at|local_layer_ids|vision_feature_layer)$"
)
#: Config keys that speak of layers by rule; named in a note when layers move and no rule here mends them.
WATCH = re.compile(
    r"(?:_layers?|_period|_offset|_interval|_freq|_pattern|_step|_replace|_every_n_layers|_group_size|_frequency)$"
)


@dataclass(frozen=True, slots=True)
class Period:
    """Layer l is `on` when l % period == offset % period, else `off`; the period is that of `keys`, or `default`."""

    keys: tuple[str, ...]
    default: int
    on: str = "full_attention"
    off: str = "sliding_attention"
    offset: int = -1


_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
_LINEAR = Period(("full_attention_interval",), 4, off="linear_attention")
#: `model_type` -> the layer types that transformers derives from a layer's index when config.json has no `layer_types`.
LAYER_TYPES = {
    "afmoe": Period(("global_attn_every_n_layers",), 4),
    "cohere2": Period(_PATTERN, 4),
    "cwm": Period((), 4, offset=0),
    "exaone4": Period(_PATTERN, 4),
    "gemma2": Period((), 2),
    "gemma3": Period(_PATTERN, 6),
    "gemma3_text": Period(_PATTERN, 6),
    "gemma3n_text": Period((), 5),
    "gemma4_text": Period((), 6),
    "gpt_oss": Period((), 2),
    "modernbert": Period(("global_attn_every_n_layers",), 3, offset=0),
    "olmo3": Period((), 4),
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "vaultgemma": Period((), 2),
}
#: config keys that `layer_types` says more exactly
LAYER_TYPE_KEYS = tuple(dict.fromkeys(key for rule in LAYER_TYPES.values() for key in rule.keys))
#: Counts of first layers -> the per-layer list that says the same where it is present.
LEADING = {
    "first_k_dense_replace": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
    "max_window_layers": "layer_types",
}
#: Counts of last layers.
TRAILING = ("num_kv_shared_layers",)
#: Every n-th layer has no rotary positions, or has experts -> the list that says the same and wins.
PERIODS = {"no_rope_layer_interval": "no_rope_layers", "interleave_moe_layer_step": "moe_layers"}
#: Config keys of models that keep something for each layer outside the layers -> what.
FIXED_DEPTH = {
    "hidden_size_per_layer_input": "embed_tokens_per_layer has columns for each layer",
    "num_mem_blocks": "the shared blocks have adapters numbered by hybrid layer",
}
