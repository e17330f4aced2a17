"""Small dense models of each type that a mixture can be made of, written by transformers, with a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import make

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
    },
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}


def base(folder: Path, kind: str, seed: int = 0, **more: Any) -> Path:
    """A model directory of random weights of this type, in float32."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {}), **more}))
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            tensor.copy_(torch.randn(tensor.shape) * 0.3 + float("norm" in name))
    network.save_pretrained(folder)
    make.write_json(folder / "tokenizer.json", make.tokenizer(64))
    make.write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    )
    return folder


def logits(folder: Path, seed: int = 0) -> torch.Tensor:
    """What a model directory says to a few random tokens; every tensor that its class wants is there, and no other."""
    network, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    ids = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return network.eval()(ids).logits
