"""LoRA adapters written by hand, in PEFT's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import make


def lora(folder: Path, base: make.Tensors, rank: int = 4, seed: int = 0, **config: Any) -> Path:
    """An adapter of the base's 2-d tensors with random factors, written by hand."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, x in base.items():
        if x.ndim == 2 and name.endswith("_proj.weight"):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            made[f"{at}.lora_A.weight"] = torch.randn(rank, x.shape[1], generator=generator) * 0.1
            made[f"{at}.lora_B.weight"] = torch.randn(x.shape[0], rank, generator=generator) * 0.1
    folder.mkdir()
    save_file(made, folder / "adapter_model.safetensors")
    make.write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": rank, "lora_alpha": 8, **config})
    return folder
