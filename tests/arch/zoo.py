"""A zoo of tiny, randomly initialised checkpoints of many transformers classes: what a merge must keep whole.

`ZOO[name]()` makes a model; `save(name, directory)` writes it as `save_pretrained` does; `forward(model)` runs it once.
Hidden size 32, two to four layers, 80 tokens; a few hundred kilobytes each.
"""

# ruff: noqa: C408, E501 - keyword arguments of config classes, one class a row
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 80
_TOKENS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_BODY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
_LLAMA = dict(_TOKENS, **_BODY, num_key_value_heads=2, max_position_embeddings=64)
_UNTIED = dict(tie_word_embeddings=False)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
_LATENT = dict(q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)
_BERT = dict(vocab_size=VOCAB, **_BODY, max_position_embeddings=64, type_vocab_size=2, pad_token_id=0)
_CODERS = dict(encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4)
_CODERS |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48, d_model=32, decoder_start_token_id=1)
_SPEECH = dict(
    vocab_size=VOCAB, **_BODY, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2
)
_SPEECH |= dict(
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, apply_spec_augment=False, num_adapter_layers=1
)
_VIT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
)
_TEXT = dict(_LLAMA, head_dim=8)
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_VISION_IDS = dict(image_token_id=70, video_token_id=71, vision_start_token_id=72, vision_end_token_id=73)
_MAMBA = dict(mamba_d_state=8, mamba_d_conv=4, mamba_expand=2)

#: name -> (class, config class, kwargs of the config)
_TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    # decoders
    "llama": ("LlamaForCausalLM", "LlamaConfig", dict(_LLAMA, **_UNTIED)),
    "llama-tied-biased": ("LlamaForCausalLM", "LlamaConfig", dict(_LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama-classifier": ("LlamaForSequenceClassification", "LlamaConfig", dict(_LLAMA, num_labels=3)),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(_LLAMA, **_UNTIED)),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", dict(_TOKENS, n_embd=32, n_layer=4, n_head=4, n_positions=64)),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        dict(_TOKENS, hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64, window_size=8, attention_types=[[["global", "local"], 2]]),
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(_TOKENS, **_BODY, max_position_embeddings=64, **_UNTIED)),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", dict(_TOKENS, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4)),
    "opt": ("OPTForCausalLM", "OPTConfig", dict(_TOKENS, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16)),
    "bloom": ("BloomForCausalLM", "BloomConfig", dict(_TOKENS, hidden_size=32, n_layer=3, n_head=4)),
    "falcon": ("FalconForCausalLM", "FalconConfig", dict(_TOKENS, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)),
    "phi": ("PhiForCausalLM", "PhiConfig", dict(_LLAMA, **_UNTIED)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dict(_LLAMA, **_UNTIED)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", dict(_LLAMA, tie_word_embeddings=True)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", dict(_TEXT, **_UNTIED, attention_bias=True)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _TEXT),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", dict(_TEXT, sliding_window=8)),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", dict(_TEXT, sliding_window=8, sliding_window_pattern=2)),
    "gemma3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        dict(_TEXT, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, laurel_rank=8, num_kv_shared_layers=2,
             intermediate_size=[48] * 4, activation_sparsity_pattern=[0.0] * 4, layer_types=["sliding_attention", "full_attention"] * 2),
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", dict(_LLAMA, **_UNTIED)),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", dict(_LLAMA, **_UNTIED)),
    "cohere": ("CohereForCausalLM", "CohereConfig", _LLAMA),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", dict(_LLAMA, sliding_window=8)),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", dict(_LLAMA, **_UNTIED)),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _LLAMA),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", dict(_TEXT, **_UNTIED)),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", dict(_LLAMA, no_rope_layer_interval=2)),
    "exaone4": ("Exaone4ForCausalLM", "Exaone4Config", dict(_LLAMA, sliding_window=8, sliding_window_pattern=2)),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _LLAMA),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", dict(_LLAMA, **_UNTIED)),
    "xglm": ("XGLMForCausalLM", "XGLMConfig", dict(_TOKENS, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, max_position_embeddings=64)),
    "xlnet": ("XLNetLMHeadModel", "XLNetConfig", dict(_TOKENS, d_model=32, n_layer=3, n_head=4, d_inner=48)),
    # mixtures of experts
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", dict(_LLAMA, **_UNTIED, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", dict(_LLAMA, **_EXPERTS, **_UNTIED, shared_expert_intermediate_size=24, decoder_sparse_step=2)),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", dict(_TEXT, **_EXPERTS, **_UNTIED, mlp_only_layers=[0])),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        dict(_LLAMA, **_LATENT, **_UNTIED, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, n_group=1, topk_group=1,
             first_k_dense_replace=1, num_nextn_predict_layers=1),
    ),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", dict(_LLAMA, num_experts=4, num_experts_per_tok=2, **_UNTIED)),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", dict(_TEXT, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, **_UNTIED)),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        dict(_TEXT, intermediate_size_mlp=48, num_local_experts=4, interleave_moe_layer_step=2, attention_chunk_size=16, **_UNTIED),
    ),
    "granite-moe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", dict(_LLAMA, num_local_experts=4, num_experts_per_tok=2)),
    "glm4-moe": (
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        dict(_TEXT, **_UNTIED, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, first_k_dense_replace=1, n_group=1, topk_group=1),
    ),
    "dbrx": (
        "DbrxForCausalLM",
        "DbrxConfig",
        dict(_TOKENS, d_model=32, n_heads=4, n_layers=3, max_seq_len=64, attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=10000.0),
             ffn_config=dict(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2, hidden_size=32)),
    ),
    "switch": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        dict(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=4, num_heads=4, num_experts=2, num_sparse_encoder_layers=2,
             num_sparse_decoder_layers=2, decoder_start_token_id=0),
    ),
    # state space and hybrids
    "mamba": ("MambaForCausalLM", "MambaConfig", dict(_TOKENS, hidden_size=32, state_size=8, num_hidden_layers=3)),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", dict(_TOKENS, hidden_size=32, state_size=8, num_hidden_layers=3, num_heads=8, head_dim=8, n_groups=1, chunk_size=8)),
    "falcon-h1": ("FalconH1ForCausalLM", "FalconH1Config", dict(_LLAMA, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=8)),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        dict(_LLAMA, **_MAMBA, mamba_dt_rank=4, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
             expert_layer_offset=1),
    ),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        dict(_LLAMA, lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]),
    ),
    "bamba": ("BambaForCausalLM", "BambaConfig", dict(_LLAMA, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=8, attn_layer_indices=[1, 3])),
    "zamba2": (
        "Zamba2ForCausalLM",
        "Zamba2Config",
        dict(_LLAMA, mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=8, mamba_headdim=8, chunk_size=8, num_mem_blocks=1, use_shared_attention_adapter=False, adapter_rank=4,
             layers_block_type=["mamba", "hybrid", "mamba", "hybrid"]),
    ),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", dict(_LLAMA, full_attn_idxs=[1, 3])),
    "qwen3-next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        dict(_TEXT, **_EXPERTS, **_UNTIED, shared_expert_intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
             linear_value_head_dim=8, full_attention_interval=2),
    ),
    "nemotron-h": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        dict(_LLAMA, **_UNTIED, head_dim=8, mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, n_groups=1, chunk_size=8, layers_block_type=["mamba", "attention", "mamba", "moe"],
             n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, moe_shared_expert_intermediate_size=24, n_group=1, topk_group=1),
    ),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig", dict(_TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=3, context_length=64)),
    # encoders
    "bert": ("BertForMaskedLM", "BertConfig", _BERT),
    "bert-bare": ("BertModel", "BertConfig", _BERT),
    "roberta-bare": ("RobertaModel", "RobertaConfig", dict(_BERT, pad_token_id=1)),
    "distilbert-bare": ("DistilBertModel", "DistilBertConfig", dict(vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64)),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", dict(_BERT, num_labels=3)),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", dict(_BERT, pad_token_id=1)),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", dict(vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64)),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", dict(_TOKENS, **_BODY, max_position_embeddings=64, local_attention=8, cls_token_id=1, sep_token_id=2)),
    "deberta-v2": ("DebertaV2ForMaskedLM", "DebertaV2Config", dict(_BERT, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"])),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", dict(_BERT, embedding_size=16)),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", dict(_BERT, embedding_size=16)),
    "vit": ("ViTForImageClassification", "ViTConfig", dict(_VIT, num_hidden_layers=3)),
    # encoder-decoders
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        dict(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, decoder_start_token_id=0),
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", dict(_TOKENS, **_CODERS, max_position_embeddings=64)),
    "marian": ("MarianMTModel", "MarianConfig", dict(_TOKENS, **_CODERS, max_position_embeddings=64)),
    # audio
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        dict(_TOKENS, **_CODERS, num_mel_bins=8, max_source_positions=16, max_target_positions=32),
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH),
    "hubert": ("HubertForCTC", "HubertConfig", _SPEECH),
    # several stacks
    "clip": ("CLIPModel", "CLIPConfig", dict(text_config=dict(_TOKENS, **_BODY, max_position_embeddings=32), vision_config=_VIT, projection_dim=16)),
    "gemma3-vl": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        dict(text_config=dict(_TEXT, sliding_window=8, sliding_window_pattern=2), vision_config=dict(_VIT, vision_use_head=False), mm_tokens_per_image=4,
             image_token_index=70, boi_token_index=72, eoi_token_index=73),
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        dict(text_config=dict(_LLAMA, model_type="llama", **_UNTIED), vision_config=dict(_VIT, model_type="clip_vision_model"), image_token_index=70),
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        dict(text_config=dict(_LLAMA, rope_parameters=_MROPE, **_UNTIED), vision_config=dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, patch_size=8),
             **_VISION_IDS, **_UNTIED),
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        dict(text_config=dict(_LLAMA, rope_parameters=_MROPE, **_UNTIED), vision_config=dict(depth=2, hidden_size=32, num_heads=4, intermediate_size=48, out_hidden_size=32,
             patch_size=8, window_size=16, fullatt_block_indexes=[1]), **_VISION_IDS, **_UNTIED),
    ),
    "qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        dict(text_config=dict(_TEXT, rope_parameters=_MROPE), vision_config=dict(depth=3, hidden_size=32, num_heads=4, intermediate_size=48, out_hidden_size=32, patch_size=8,
             num_position_embeddings=4, deepstack_visual_indexes=[0, 2]), **_VISION_IDS),
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        dict(text_config=dict(_LLAMA, model_type="llama", **_UNTIED), vision_config=_VIT, image_token_id=70, scale_factor=2, **_UNTIED),
    ),
    "blip2": (
        "Blip2ForConditionalGeneration",
        "Blip2Config",
        dict(vision_config=_VIT, qformer_config=dict(_BERT, num_hidden_layers=3, encoder_hidden_size=32, cross_attention_frequency=2), num_query_tokens=4, image_token_index=70,
             text_config=dict(_TOKENS, model_type="opt", hidden_size=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32)),
    ),
}  # fmt: skip


def _make(name: str) -> PreTrainedModel:
    cls, config, options = _TABLE[name]
    torch.manual_seed(sum(map(ord, name)))
    made = getattr(transformers, cls)(getattr(transformers, config)(**options))
    # biases, scales and sinks are initialised alike in every layer: make each tensor its own
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.02)
    return made.eval()


#: name -> a function that makes the model
ZOO: dict[str, Callable[[], PreTrainedModel]] = {name: partial(_make, name) for name in _TABLE}
CLASSES = {name: cls for name, (cls, _, _) in _TABLE.items()}


def save(name: str, directory: Path) -> Path:
    """Write the model of that name under `directory`, once; the checkpoint's folder."""
    out = directory / name
    if not (out / "config.json").exists():
        ZOO[name]().save_pretrained(out)
    return out


def load(directory: Path, name: str) -> PreTrainedModel:
    """Load a checkpoint with the class of that name; fails if a tensor is missing, left over or of another shape."""
    cls = getattr(transformers, CLASSES[name])
    model, report = cls.from_pretrained(directory, output_loading_info=True, dtype="auto")
    wrong = {kind: found for kind, found in report.items() if found}
    assert not wrong, wrong
    return model.eval()


def forward(model: PreTrainedModel) -> torch.Tensor:
    """The first output of one pass over eight tokens, a short sound or a small image, as the class takes them."""
    tokens = torch.arange(3, 11)[None]
    sound = torch.linspace(-1, 1, 64)[None]
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    kind = type(model).__name__
    if kind.startswith(("Wav2Vec2", "Hubert")):
        inputs = dict(input_values=sound)
    elif kind.startswith("Whisper"):
        inputs = dict(input_features=torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32), decoder_input_ids=tokens)
    elif kind.startswith("ViT"):
        inputs = dict(pixel_values=image)
    elif kind.startswith("CLIP"):
        inputs = dict(input_ids=tokens, pixel_values=image)
    elif kind.startswith("Blip2"):
        inputs = dict(input_ids=torch.cat([torch.full((1, 4), 70), tokens], 1), pixel_values=image)
    elif model.config.is_encoder_decoder:
        inputs = dict(input_ids=tokens, decoder_input_ids=tokens)
    else:
        inputs = dict(input_ids=tokens)
    with torch.no_grad():
        out = (
            model(**inputs, use_cache=False)
            if "input_ids" in inputs and not kind.startswith("CLIP")
            else model(**inputs)
        )
    logits: torch.Tensor = out.logits if "logits" in out else out[0]
    return logits


@pytest.fixture(scope="session")
def pen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `save` writes to: one for all test files of a session."""
    return tmp_path_factory.getbasetemp() / "zoo"
