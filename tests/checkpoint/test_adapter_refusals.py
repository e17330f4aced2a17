"""Adapters that are broken, hostile, or of a kind that is not read are refused: named, explained, before the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import make
import plait
from loras import lora
from plait.checkpoint import InMemory
from plait.checkpoint.adapter import Adapted, open_adapter
from plait.errors import ModelError, PlaitError


def spoiled(
    tensors: Callable[[dict[str, Any]], Any] | None = None, **config: Any
) -> Callable[[Path, make.Tensors], Path]:
    """A program that writes an adapter with these entries in its configuration, and tensors changed in place."""

    def write(folder: Path, base: make.Tensors) -> Path:
        lora(folder, base, **config)
        if tensors:
            made = load_file(folder / "adapter_model.safetensors")
            tensors(made)
            save_file(made, folder / "adapter_model.safetensors")
        return folder

    return write


AT = "base_model.model.model.layers.0.mlp.up_proj"
ELSEWHERE = "base_model.model.model.layers.9.mlp.up_proj.lora_"
WRONG: dict[str, tuple[str, Callable[[Path, make.Tensors], Path]]] = {
    "IA3": ("IA3", spoiled(peft_type="IA3")),
    "LoHa": ("LOHA", spoiled(peft_type="LOHA")),
    "no kind": ("LORA", spoiled(peft_type=None)),
    "pissa": ("PiSSA|pissa", spoiled(init_lora_weights="pissa_niter_4")),
    "loftq": ("loftq", spoiled(init_lora_weights="loftq")),
    "qalora": ("use_qalora", spoiled(use_qalora=True)),
    "replication": ("layer_replication", spoiled(layer_replication=[[0, 2]])),
    "rank": ("rank", spoiled(rank_pattern={"up_proj": 3})),
    "other rank": ("rank", spoiled(lambda made: made.update({f"{AT}.lora_B.weight": torch.zeros(16, 5)}))),
    "rank of 0": ("number above 0", spoiled(alpha_pattern={"x": 0})),
    "rank as text": ("whole number|number", spoiled(rank_pattern={"x": "4"})),
    "half a rank": ("whole number", spoiled(rank_pattern={"x": 1.5})),
    "alpha as a list": ("number", spoiled(lora_alpha=[8])),
    "alpha of true": ("number", spoiled(lora_alpha=True)),
    "patterns as a list": ("object", spoiled(rank_pattern=["x"])),
    "a slow pattern": ("simple patterns", spoiled(alpha_pattern={"(a+)+$": 1})),
    "a broken pattern": ("expressions", spoiled(alpha_pattern={"(a": 1})),
    "dora as text": ("true or false", spoiled(use_dora="yes")),
    "tokens as text": ("token ids", spoiled(trainable_token_indices=["a"])),
    "parameters as text": ("names", spoiled(target_parameters="x")),
    "dora without magnitudes": ("use_dora", spoiled(use_dora=True)),
    "half a pair": ("not whole", spoiled(lambda made: made.pop(f"{AT}.lora_A.weight"))),
    "shape": ("does not fit its base", spoiled(lambda made: made.update({f"{AT}.lora_A.weight": torch.zeros(4, 9)}))),
    "whole numbers": (
        "quantised",
        spoiled(lambda made: made.update({f"{AT}.lora_A.weight": torch.zeros(4, 8).char()})),
    ),
    "another module": (
        "no such tensor",
        spoiled(
            lambda m: m.update({f"{ELSEWHERE}A.weight": torch.zeros(4, 8), f"{ELSEWHERE}B.weight": torch.zeros(16, 4)})
        ),
    ),
    "a new head": (
        "no such tensor",
        spoiled(lambda made: made.update({"base_model.model.score.weight": torch.ones(2, 8)})),
    ),
    "a larger vocabulary": (
        "does not fit its base",
        spoiled(lambda made: made.update({"base_model.model.lm_head.weight": torch.ones(18, 8)})),
    ),
    "unknown tensor": ("does not know", spoiled(lambda made: made.update({f"{AT}.lora_E": torch.ones(4, 1)}))),
    "no tensor": ("no tensors", spoiled(lambda made: made.clear())),
}


@pytest.mark.parametrize("fault", WRONG)
def test_refused(fault: str, tmp_path: Path) -> None:
    """What is no LoRA of this base is refused by name before the work, and the message says what to do or was wanted."""
    word, write = WRONG[fault]
    made = make.tensors()
    base, folder = make.write(tmp_path / "base", made), write(tmp_path / "bad", made)
    with pytest.raises(ModelError, match=word) as caught:
        plait.open(f"{base}+{folder}")
    assert str(folder) in caught.value.what
    assert caught.value.found
    assert caught.value.do or caught.value.wanted
    problems = plait.check(make.recipe("linear", f"{base}+{folder}", base))
    assert [str(p) for p in problems] == [str(caught.value)]


@pytest.mark.parametrize("kind", ["no folder", "a model", "no weights", "no JSON"])
def test_no_adapter(kind: str, tmp_path: Path) -> None:
    """A reference whose second part is no adapter says so."""
    base, other = make.model(tmp_path / "base"), tmp_path / "other"
    if kind == "a model":
        make.model(other)
    elif kind != "no folder":
        lora(other, make.tensors())
        (other / "adapter_model.safetensors").unlink() if kind == "no weights" else None
        (other / "adapter_config.json").write_text("[") if kind == "no JSON" else None
    with pytest.raises(ModelError) as caught:
        plait.open(f"{base}+{other}")
    assert str(other) in str(caught.value)


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    3.5,
    10**30,
    float("nan"),
    "",
    "4",
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    {"a": [None]},
    [None] * 3,
]
CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "peft_type")
CONFIG += ("target_parameters", "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "use_qalora")


@pytest.mark.parametrize("key", CONFIG)
def test_odd_configurations(key: str, tmp_path: Path) -> None:
    """Whatever an adapter_config.json says, the adapter is read, or refused by an error that a person can read."""
    made = make.tensors(layers=1)
    base = InMemory(made)
    for i, value in enumerate(ODD):
        folder = lora(tmp_path / str(i), made, **{key: value})
        problem = None
        try:
            Adapted(base, open_adapter(folder)).read("model.layers.0.mlp.up_proj.weight")
        except PlaitError as error:
            problem = error.what
        assert problem is None or str(folder) in problem
