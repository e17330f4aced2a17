"""Whole merges, by the library's front door, of a tiny checkpoint of every class of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arch.test_config import BOUND
from arch.zoo import ZOO, forward, load, pen, save
from plait.arch import infer
from plait.checkpoint.source import Opened, open_model
from plait.front import merge
from plait.types import ModelRef
from plait.verify import verify

__all__ = ["pen"]


def opened(path: Path) -> Opened:
    return open_model(ModelRef(str(path)))


def doubled(source: Path) -> dict[str, Any]:
    """A recipe that has the first layer of every stack twice."""
    checkpoint = opened(source).checkpoint
    modules = infer(checkpoint.specs, checkpoint.config).modules

    def slices(count: int) -> list[dict[str, Any]]:
        ranges = [[0, 1], [0, count]] if count else [[0, 0]]
        return [{"sources": [{"model": str(source), "layer_range": r}]} for r in ranges]

    if len(modules) == 1:
        return {"merge_method": "passthrough", "slices": slices(modules[0].count)}
    return {"merge_method": "passthrough", "modules": {m.name: {"slices": slices(m.count)} for m in modules}}


@pytest.mark.parametrize("name", ZOO)
def test_a_copy_keeps_every_tensor(name: str, pen: Path, tmp_path: Path) -> None:
    """Passthrough of one model gives its tensors, all of them and no other, bit for bit, and its config; they fit."""
    source = opened(save(name, pen))
    merge({"merge_method": "passthrough", "models": [{"model": str(pen / name)}]}).save(tmp_path / "out")
    copy = opened(tmp_path / "out")
    assert copy.config == source.config
    assert copy.checkpoint.specs == source.checkpoint.specs
    for tensor in source.checkpoint.specs:
        assert torch.equal(copy.checkpoint.read(tensor), source.checkpoint.read(tensor)), tensor
    assert verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize("name", [name for name in ZOO if name not in BOUND])
def test_a_deeper_model_loads_and_runs(name: str, pen: Path, tmp_path: Path) -> None:
    """Slices [0, 1) and [0, n) of every stack give n + 1 layers; transformers finds each tensor, no other, and computes."""
    source = save(name, pen)
    merge(doubled(source)).save(tmp_path / "out")
    was, now = opened(source).checkpoint, opened(tmp_path / "out").checkpoint
    before, after = infer(was.specs, was.config), infer(now.specs, now.config)
    assert [(m.name, m.count) for m in after.modules] == [(m.name, m.count + bool(m.count)) for m in before.modules]
    for module in before.modules:
        for tensor in module.names():
            place = before.place(tensor)
            new = tensor if place.layer is None else module.stack.name(place.layer + 1, place.suffix)  # type: ignore[union-attr]
            assert torch.equal(now.read(new), was.read(tensor)), tensor
    assert torch.isfinite(forward(load(tmp_path / "out", name))).all()
