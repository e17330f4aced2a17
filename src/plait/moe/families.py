"""Which mixtures can be made of which dense models: those whose layers differ from the dense ones in the mlp alone.

A row of the table says how the class of transformers is called, what stands in its layers, and what its config needs. That the
parts fit is a law with a test: if every expert is the base's own mlp, the mixture computes what the base computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GATED = ("gate_proj", "up_proj", "down_proj")
_LLAMA = tuple(f"self_attn.{part}_proj.weight" for part in "qkvo")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_BIASES = tuple(f"self_attn.{part}_proj.bias" for part in "qkv")


@dataclass(frozen=True)
class Dense:
    """A dense model type: its (gate, up, down) within a layer, and what its class takes for keys that a config leaves out."""

    mlp: tuple[str, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    theta: float = 10000.0
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """An expert that is always on: where its tensors stand, whether it has a gate, whether the class insists on one."""

    prefix: str
    gate: str | None = None
    required: bool = False
    any_width: bool = False
    words: tuple[str, str, str] = GATED


@dataclass(frozen=True)
class Family:
    """A mixture's class. In `config` a text in braces is a fact of the mixture (`mixture.facts`)."""

    model_type: str
    architecture: str
    title: str  # as mergekit calls it, for `architecture:`
    dense: tuple[str, ...]
    keeps: tuple[str, ...]  # what a layer has besides its mlp
    router: str
    experts: str
    config: Mapping[str, Any]
    words: tuple[str, str, str] = GATED
    shared: Shared | None = None
    packed: tuple[str, str] | None = None  # names of a layer's two tensors where that is how they are published
    zeros: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # more tensors of the router: suffix -> shape
    only: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # dense type -> more keys
    loads: bool = True  # in transformers, without code of the model's own

    def why_not(self, gated: Sequence[bool], windowed: bool) -> str | None:
        """Why shared experts with or without gates of their own, or a base with a sliding window, do not fit; None if they do."""
        if windowed and "{window}" not in self.config.values():
            return "it has no sliding window"
        if not gated:
            return "it needs one shared expert" if self.shared and self.shared.required else None
        if self.shared is None:
            return "it has no place for a shared expert"
        if len(gated) > 1:
            return "it has one shared expert"
        if gated[0] and not self.shared.gate:
            return "its shared expert has no gate: leave out its positive_prompts"
        if self.shared.gate and not gated[0]:
            return "its shared expert has a gate: give it positive_prompts"
        return None

    def answers(self, name: str) -> bool:
        """Whether `architecture: name` means this one: the beginning of its title, type or class."""
        own = (_plain(text) for text in (self.title, self.model_type, self.architecture))
        return any(text.startswith(_plain(name)) for text in own)


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


DENSE: dict[str, Dense] = {
    "llama": Dense(defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}),
    "mistral": Dense(
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        }
    ),
    "qwen2": Dense(defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32}),
    "qwen3": Dense(
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,
        }
    ),
    "granite": Dense(defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}),
    "ernie4_5": Dense(
        theta=500000.0,
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "hunyuan_v1_dense": Dense(defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}),
    "olmo2": Dense(defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}),
    "cohere2": Dense(
        defaults={
            "layer_norm_eps": 1e-5,
            "logit_scale": 0.0625,
            "sliding_window": 4096,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    ),
    "lfm2": Dense(
        mlp=("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
        theta=1000000.0,
        defaults={"norm_eps": 1e-5, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
}

_QWEN_KEYS = {
    "num_experts": "{experts}",
    "num_experts_per_tok": "{top_k}",
    "moe_intermediate_size": "{wide}",
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
_GRANITE_KEYS = {
    "num_local_experts": "{experts}",
    "num_experts_per_tok": "{top_k}",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
_PLAIN_GRANITE = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": "{attention}",
}

#: in the order in which they are tried
FAMILIES: tuple[Family, ...] = (
    Family(
        "mixtral",
        "MixtralForCausalLM",
        "Mixtral",
        ("llama", "mistral"),
        (*_LLAMA, *_NORMS),
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts",
        {
            "num_local_experts": "{experts}",
            "num_experts_per_tok": "{top_k}",
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
            "sliding_window": "{window}",
        },
        words=("w1", "w3", "w2"),
    ),
    Family(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        "Granite MoE",
        ("granite", "llama", "mistral"),
        (*_LLAMA, *_NORMS),
        "block_sparse_moe.router.layer.weight",
        "block_sparse_moe.experts",
        {**_GRANITE_KEYS, "shared_intermediate_size": "{shared_wide}"},
        shared=Shared("shared_mlp", any_width=True, words=("input_linear", "input_linear", "output_linear")),
        packed=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        only={"llama": _PLAIN_GRANITE, "mistral": _PLAIN_GRANITE},
    ),
    Family(
        "deepseek",
        "DeepseekForCausalLM",
        "DeepSeek MoE",
        ("llama", "mistral"),
        (*_LLAMA, *_NORMS),
        "mlp.gate.weight",
        "mlp.experts",
        {
            "n_routed_experts": "{experts}",
            "n_shared_experts": "{shared}",
            "num_experts_per_tok": "{top_k}",
            "moe_intermediate_size": "{wide}",
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": True,
            "auto_map": {
                kind: f"deepseek-ai/deepseek-moe-16b-base--{place}"
                for kind, place in (
                    ("AutoConfig", "configuration_deepseek.DeepseekConfig"),
                    ("AutoModel", "modeling_deepseek.DeepseekModel"),
                    ("AutoModelForCausalLM", "modeling_deepseek.DeepseekForCausalLM"),
                )
            },
        },
        shared=Shared("mlp.shared_experts"),
        loads=False,
    ),
    Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "Qwen MoE",
        ("qwen2", "llama", "mistral"),
        (*_LLAMA, *_BIASES, *_NORMS),
        "mlp.gate.weight",
        "mlp.experts",
        {**_QWEN_KEYS, "shared_expert_intermediate_size": "{shared_wide}", "qkv_bias": "{biases}"},
        shared=Shared("mlp.shared_expert", "mlp.shared_expert_gate.weight", required=True, any_width=True),
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3 MoE",
        ("qwen3",),
        (*_LLAMA, "self_attn.q_norm.weight", "self_attn.k_norm.weight", *_NORMS),
        "mlp.gate.weight",
        "mlp.experts",
        _QWEN_KEYS,
    ),
    Family(
        "dots1",
        "Dots1ForCausalLM",
        "Dots MoE",
        ("qwen3",),
        (*_LLAMA, "self_attn.q_norm.weight", "self_attn.k_norm.weight", *_NORMS),
        "mlp.gate.weight",
        "mlp.experts",
        {
            "n_routed_experts": "{experts}",
            "n_shared_experts": "{shared}",
            "num_experts_per_tok": "{top_k}",
            "moe_intermediate_size": "{wide}",
            "norm_topk_prob": True,
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "sliding_window": "{window}",
        },
        shared=Shared("mlp.shared_experts", required=True),
        zeros={"mlp.gate.e_score_correction_bias": ("{experts}",)},
    ),
    Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        "Ernie 4.5 MoE",
        ("ernie4_5",),
        (*_LLAMA, *_NORMS),
        "mlp.gate.weight",
        "mlp.experts",
        {
            "moe_num_experts": "{experts}",
            "moe_k": "{top_k}",
            "moe_num_shared_experts": "{shared}",
            "moe_intermediate_size": "{wide}",
            "moe_layer_start_index": 0,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "moe_norm_min": 1e-12,
        },
        shared=Shared("mlp.shared_experts"),
        zeros={"mlp.moe_statics.e_score_correction_bias": ("1", "{experts}")},
    ),
    Family(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        "HunYuan MoE",
        ("hunyuan_v1_dense",),
        (*_LLAMA, "self_attn.query_layernorm.weight", "self_attn.key_layernorm.weight", *_NORMS),
        "mlp.gate.wg.weight",
        "mlp.experts",
        {"num_experts": "{experts}", "moe_topk": "{top_k}"},
        shared=Shared("mlp.shared_mlp", required=True),
    ),
    Family(
        "flex_olmo",
        "FlexOlmoForCausalLM",
        "FlexOlmo",
        ("olmo2",),
        (
            *_LLAMA,
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "post_attention_layernorm.weight",
            "post_feedforward_layernorm.weight",
        ),
        "mlp.gate.weight",
        "mlp.experts",
        {
            "num_experts": "{experts}",
            "num_experts_per_tok": "{top_k}",
            "norm_topk_prob": True,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        },
    ),
    Family(
        "cohere2_moe",
        "Cohere2MoeForCausalLM",
        "Cohere2 MoE",
        ("cohere2",),
        (*_LLAMA, "input_layernorm.weight"),
        "mlp.gate.weight",
        "mlp.experts",
        {
            "num_experts": "{experts}",
            "num_experts_per_tok": "{top_k}",
            "num_shared_experts": 0,
            "expert_selection_fn": "softmax",
            "norm_topk_prob": True,
            "mlp_layer_types": "{sparse}",
            "rms_norm_eps": None,
        },
    ),
    Family(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        "LFM2 MoE",
        ("lfm2",),
        (
            *(f"self_attn.{part}_proj.weight" for part in ("q", "k", "v", "out")),
            "self_attn.q_layernorm.weight",
            "self_attn.k_layernorm.weight",
            "conv.conv.weight",
            "conv.in_proj.weight",
            "conv.out_proj.weight",
            "operator_norm.weight",
            "ffn_norm.weight",
        ),
        "feed_forward.gate.weight",
        "feed_forward.experts",
        {
            "num_experts": "{experts}",
            "num_experts_per_tok": "{top_k}",
            "moe_intermediate_size": "{wide}",
            "num_dense_layers": 0,
            "norm_topk_prob": True,
            "use_expert_bias": False,
            "routed_scaling_factor": 1.0,
        },
        words=("w1", "w3", "w2"),
    ),
)

#: classes of transformers that no dense model fits, and why; ones of several modalities are not made
UNFIT: dict[str, str] = {
    **dict.fromkeys(
        (
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear"),
            *("longcat_flash", "mistral4"),
        ),
        "its attention keeps keys and values in a latent space, and no dense model has that",
    ),
    **dict.fromkeys(
        ("minimax_m2", "olmoe"),
        "its layers have a norm before the attention and norms of whole queries and keys: no dense class has both",
    ),
    "phimoe": "its norms have biases and take means; Phi-3's do not, and its queries, keys and values are one matrix",
    "exaone_moe": "it has norms before attention and mlp, EXAONE 4 has them after",
    "glm4_moe": "GLM-4 has norms after attention and mlp, too, and a rotary embedding in another order",
    "gpt_oss": "its attention has learned sinks and its experts biases and a clamp",
    "llama4": "it scales an expert's input by the gate, and its rotary embedding has another order than Llama 3's",
    "granitemoe": "GraniteMoeShared without a shared expert is the same, and is what is written",
    **dict.fromkeys(
        ("solar_open", "mellum", "hy_v3"),
        "nothing that the classes above would not do, with fewer programs that run it",
    ),
    **dict.fromkeys(
        ("granitemoehybrid", "jamba", "nemotron_h"), "its layers are of several kinds, state-space ones among them"
    ),
    "granitemoe_swa": "its attention has learned sinks",
    "dbrx": "its norms take means, and its queries, keys and values are one matrix whose results are clipped",
    "zaya": "its router is a network of its own, and its attention compresses keys and values",
    "doge": "its experts are rows of embeddings, not mlps",
    "jetmoe": "its attention is a mixture, too",
    "minimax": "its residual connection carries the normed state",
    "afmoe": "its attention has a gate on its output",
    "mimo_v2_flash": "its values have another width than its keys",
    "qwen3_next": "its layers alternate with linear attention, and no dense class has the same ones",
    **dict.fromkeys(
        ("qwen3_5_moe", "qwen3_vl_moe", "qwen3_omni_moe", "glm4v_moe", "ernie4_5_vl_moe", "aria", "gemma4"),
        "it is of several modalities: only text models are made into mixtures yet",
    ),
    **dict.fromkeys(("switch_transformers", "nllb-moe"), "it has an encoder: only decoders are made into mixtures yet"),
}
