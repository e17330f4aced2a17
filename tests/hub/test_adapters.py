"""Adapters from the Hub, like models from there."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import make
import plait
from hub.conftest import User
from hub.fakehub import FakeHub
from loras import lora


def test_from_the_hub(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """`org/base+org/adapter@revision` is fetched, applied and pinned, and both commits and all files are in the record."""
    base, adapter = make.model(tmp_path / "base"), lora(tmp_path / "lora", make.tensors())
    commits = [hub.publish("tester/base", base), hub.publish("tester/lora", adapter)]
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("linear", f"tester/base+tester/lora@{commits[1]}"))
    user.ok("merge", recipe, tmp_path / "out", "--transformers-cache", tmp_path / "cache")
    facts = json.loads((tmp_path / "out" / "plait_provenance.json").read_text())["models"][0]
    assert [facts["revision"], facts["adapter_revision"]] == commits
    names = [file["name"] for file in facts["files"]]
    assert names == ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    local = plait.open(f"{base}+{adapter}")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert set(merged) == set(local.specs)
    assert all(torch.equal(x, local.read(name)) for name, x in merged.items())
