"""One family after the other: a merge of three loads in transformers with every tensor in its place, and generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel

import make
import plait
from align.variants import other
from arch.zoo import forward, load, pen, save

__all__ = ["other", "pen"]

DECODERS = ["llama", "mistral", "gpt2", "opt", "phi3", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2"]
EXPERTS = ["mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v3", "gpt-oss", "llama4", "olmoe"]
HYBRIDS = ["mamba", "jamba", "falcon-h1", "lfm2", "qwen3-next", "gemma3n"]
SEVERAL = ["llava", "qwen2.5-vl", "idefics3", "clip", "bart", "wav2vec2"]
ENCODERS = ["roberta", "modernbert", "vit"]
#: classes that templates of their tensors, made for other versions or variants of them, reject
REJECTED = ["bert", "roberta-bare", "distilbert-bare", "cohere", "falcon", "gpt-neox", "t5", "whisper"]
REJECTED += ["qwen2-vl", "qwen3-vl", "gemma3-vl"]


def generate(model: PreTrainedModel) -> torch.Tensor:
    """Four new tokens after eight, or after a short sound."""
    inputs: dict[str, Any] = {"input_ids": torch.arange(3, 11)[None]}
    if type(model).__name__.startswith("Whisper"):
        inputs = {"input_features": torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32)}
    made: torch.Tensor = model.generate(**inputs, min_new_tokens=4, max_new_tokens=4, do_sample=False, use_cache=False)  # type: ignore[operator]
    return made


def merged(name: str, pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """Merges a base and two fine-tunes, and loads, runs and generates."""
    base, a, b = save(name, pen), other(name, "a", seed=1), other(name, "b", seed=2)
    merge = plait.merge(make.recipe("task_arithmetic", a, b, base=base, parameters={"weight": 0.5}))
    assert all(step.method for step in merge.plan.steps if step.spec.floating)
    merge.save(tmp_path / "out")
    model = load(tmp_path / "out", name)
    assert torch.isfinite(forward(model)).all()
    assert not torch.equal(forward(model), forward(load(base, name)))
    if isinstance(model, GenerationMixin):
        assert generate(model).shape[1] >= 4


@pytest.mark.parametrize("name", [*DECODERS, *EXPERTS, *HYBRIDS, *SEVERAL, *ENCODERS])
def test_a_merge_loads_and_generates(name: str, pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """Task arithmetic of two fine-tunes: transformers finds each tensor and no other, computes, and generates if it can."""
    merged(name, pen, other, tmp_path)


@pytest.mark.parametrize("name", REJECTED)
def test_row_29_rejected_classes(name: str, pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """Classes whose current checkpoints a table of tensor names would reject merge like the others, load, and generate."""
    merged(name, pen, other, tmp_path)


def test_row_30_bert_model(pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """A bare BertModel, with a pooler that is optional and no prefix, merges and runs."""
    merged("bert-bare", pen, other, tmp_path)
