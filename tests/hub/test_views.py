"""What stands between the files on the Hub and a merge: recipes as models, tokenizers that decide the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import make
from hub.conftest import User
from hub.fakehub import FakeHub


@pytest.mark.parametrize("stream", [True, False])
def test_recipe_as_model(stream: bool, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """The models of a recipe that is itself a model are fetched or streamed like the others."""
    folders = {name: make.model(tmp_path / name, seed) for seed, name in enumerate("abc")}
    for name, folder in folders.items():
        hub.publish(f"tester/{name}", folder)
    stages = "\n---\n".join(
        json.dumps(recipe)
        for recipe in (
            {"name": "first", **make.recipe("linear", "tester/a", "tester/b")},
            make.recipe("linear", "first", "tester/c"),
        )
    )
    (tmp_path / "r.yml").write_text(stages)
    (tmp_path / "l.yml").write_text(stages.replace("tester/", f"{tmp_path}/"))
    user.ok("merge", tmp_path / "l.yml", tmp_path / "local")
    cache = tmp_path / "cache"
    options = ["--transformers-cache", cache, *["--stream"] * stream]
    done = user.ok("merge", tmp_path / "r.yml", tmp_path / "out", *options)
    assert ("reads parts of 3 files" if stream else "fetches 3 files") in done.err
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "local")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert len(list(cache.rglob("*.safetensors"))) == 3 * (not stream)


def test_tokenizers_are_compared(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Large tokenizers travel to be compared when the Hub's hashes of them differ, and stay there when they are the same."""
    for seed, name in enumerate("abc"):
        folder = make.model(tmp_path / name, seed)
        tokenizer = make.tokenizer(16)
        if name == "c":
            words = tokenizer["model"]["vocab"]
            words["w3"], words["w4"] = words["w4"], words["w3"]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer) + " " * 200_000)
        hub.publish(f"tester/{name}", folder)
    cache = tmp_path / "cache"
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", "tester/b"))
    user.ok("check", path, "--transformers-cache", cache)
    assert "tokenizer.json" not in hub.fetched()
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", "tester/c"))
    done = user.ok("check", path, "--transformers-cache", cache)
    assert "differ in 2 ids" in done.err


def test_report(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A merge is looked through beside parents on the Hub, in parts and without a copy, at the commits that were merged."""
    base = make.tensors(0)
    tuned = {
        name: x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for name, x in base.items()
    }
    folders = {name: make.write(tmp_path / name, made) for name, made in (("a", base), ("b", tuned))}
    for name, folder in folders.items():
        hub.publish(f"tester/{name}", folder)
    path = make.write_json(tmp_path / "r.yml", make.recipe("task_arithmetic", "tester/b", base="tester/a"))
    options = ["--transformers-cache", tmp_path / "cache"]
    user.ok("merge", path, tmp_path / "out", "--stream", *options)
    data = json.loads(user.ok("report", tmp_path / "out", "--json", "--quiet", *options).out)
    assert data["verdict"] == "good"
    assert data["parents"][1]["carried"] == pytest.approx(1.0)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.publish("tester/b", make.model(tmp_path / "c", 0), "second")
    assert json.loads(user.ok("report", tmp_path / "out", "--json", "--quiet", *options).out) == data
