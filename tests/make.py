"""Llama-shaped checkpoints, written in milliseconds, and the recipes that merge them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]

NAMES = {
    "input_layernorm": ("hidden",),
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("half", "hidden"),
    "self_attn.v_proj": ("half", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "post_attention_layernorm": ("hidden",),
    "mlp.gate_proj": ("wide", "hidden"),
    "mlp.up_proj": ("wide", "hidden"),
    "mlp.down_proj": ("hidden", "wide"),
}


def tensors(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 8,
    vocab: int = 16,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> Tensors:
    """The tensors of a Llama with four heads, two of them for keys; norms are near 1, the rest near 0."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden": hidden, "half": hidden // 2, "wide": 2 * hidden}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        for name, axes in NAMES.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = tuple(sizes[axis] for axis in axes)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + float(len(shape) == 1)).to(dtype)
        for name, shape in shapes.items()
    }


def config(made: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    """The config.json that goes with `tensors`."""
    vocab, hidden = made["model.embed_tokens.weight"].shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": str(made["model.embed_tokens.weight"].dtype).removeprefix("torch."),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": sum(name.endswith("q_proj.weight") for name in made),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "tie_word_embeddings": "lm_head.weight" not in made,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def tokenizer(vocab: int) -> dict[str, Any]:
    """A tokenizer.json of so many words."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, vocab)}}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def write(
    folder: Path, made: Tensors, *, shards: int = 1, index: bool = True, settings: dict[str, Any] | None = None
) -> Path:
    """A model directory of these tensors: so many shards, with an index or without, config and tokenizer beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(made, folder / "model.safetensors", {"format": "pt"})
    else:
        names, weight_map = list(made), {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: made[name] for name in names[i::shards]}
            save_file(part, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        if index:
            write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", config(made) if settings is None else settings)
    write_json(folder / "tokenizer.json", tokenizer(made["model.embed_tokens.weight"].shape[0]))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    return folder


def model(folder: Path, seed: int = 0, *, shards: int = 1, settings: dict[str, Any] | None = None, **more: Any) -> Path:
    """A model directory of random weights; `more` is for `tensors`, `settings` are added to the config."""
    made = tensors(seed, **more)
    return write(folder, made, shards=shards, settings=config(made, **(settings or {})))


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), "utf-8")
    return path


def recipe(method: str, *models: Path | str, base: Path | str | None = None, **rest: Any) -> dict[str, Any]:
    """A recipe of whole models, each with a weight of 1; `rest` are other keys."""
    made: dict[str, Any] = {"merge_method": method, "models": [{"model": str(m)} for m in models]}
    if base is not None:
        made["base_model"] = str(base)
    return {**made, "parameters": {"weight": 1.0}, **rest}


def hashes(out: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """File name -> SHA-256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob(pattern))}


Factory = Callable[..., Path]
