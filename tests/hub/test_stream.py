"""What travels from the Hub: headers to plan, the tensors that a recipe uses to merge, nothing else; and the right bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import make
from hub.conftest import User
from hub.fakehub import FakeHub, Repo
from plait.types import TensorSpec


def large(hub: FakeHub, name: str, folder: Path, shards: int = 30) -> int:
    """A model of the shape of Llama 70B whose weights are holes in files; returns the bytes that it claims."""
    folder.mkdir()
    wide, vocab, layers = 8192, 32000, 80
    shapes = {"model.embed_tokens.weight": [vocab, wide], "lm_head.weight": [vocab, wide], "model.norm.weight": [wide]}
    sides = {"wide": wide, "half": 1024, "hidden": wide}
    for layer in range(layers):
        for part, axes in make.NAMES.items():
            shape = [28672 if axis == "wide" else sides[axis] for axis in axes]
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    names, weight_map, total, changes = list(shapes), {}, 0, []
    for i in range(shards):
        file, at, header = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", 0, {}
        for tensor in names[i::shards]:
            size = TensorSpec("BF16", tuple(shapes[tensor])).nbytes
            header[tensor] = {"dtype": "BF16", "shape": shapes[tensor], "data_offsets": [at, at + size]}
            weight_map[tensor], at = file, at + size
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + at)
        total += at
        changes.append((file, hub.keep(folder / file, hashlib.sha256(f"{name}/{file}".encode()).hexdigest())))
    make.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    make.write_json(
        folder / "config.json",
        {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "vocab_size": vocab, "hidden_size": wide},
    )
    (folder / "tokenizer.json").write_text(" " * 9_000_000)
    for file in ("model.safetensors.index.json", "config.json", "tokenizer.json"):
        changes.append((file, hub.keep(folder / file)))
    hub.commit(hub.repos.setdefault(("model", name), Repo("model", name)), "main", changes, "large")
    return total


def test_headers_alone(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """check, plan, explain and inspect of models of 138 GB move a few hundred KB a model, and no weight."""
    for name in ("tester/x", "tester/y"):
        assert large(hub, name, tmp_path / name[-1]) > 130e9
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/x", "tester/y"))
    cache = tmp_path / "cache"
    for verb in (["check", path], ["plan", path], ["explain", path, "lm_head.weight"], ["inspect", "tester/x"]):
        hub.sent = 0
        user.ok(*verb, "--transformers-cache", cache)
        assert hub.sent < 400_000 * (1 if verb[0] == "inspect" else 2), verb
    assert "tokenizer.json" not in hub.fetched()
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("cdn", [None, 2])
def test_stream(cdn: int | None, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """--stream moves the tensors that the recipe uses and keeps no weights, also from signed addresses that run out."""
    hub.cdn = cdn
    folders = [make.model(tmp_path / name, seed, layers=8, hidden=64, shards=2) for seed, name in enumerate("ab")]
    commits = [hub.publish(f"tester/{folder.name}", folder) for folder in folders]
    used = {"merge_method": "passthrough", "slices": []}
    for name, layers in (("a", [0, 2]), ("b", [6, 8])):
        used["slices"].append({"sources": [{"model": f"tester/{name}", "layer_range": layers}]})
    text = json.dumps(used)
    (tmp_path / "r.yml").write_text(text)
    (tmp_path / "l.yml").write_text(text.replace("tester/", f"{tmp_path}/"))
    user.ok("merge", tmp_path / "l.yml", tmp_path / "local")
    cache = tmp_path / "cache"
    user.ok("merge", tmp_path / "r.yml", tmp_path / "out", "--stream", "--transformers-cache", cache)
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "local")
    assert not list(cache.rglob("*.safetensors"))
    facts = json.loads((tmp_path / "out" / "plait_provenance.json").read_text())
    assert [model["revision"] for model in facts["models"]] == commits
    assert [f["hub_sha256"] for f in facts["models"][0]["files"]] == list(make.hashes(folders[0]).values())
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    whole = sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))
    assert hub.sent < written + 60_000 < whole
    assert not any(hub.token in path.read_text() for path in tmp_path.glob("out/*.*") if path.suffix != ".safetensors")


def test_large_tensors_by_pieces(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Tensors of many blocks arrive whole, also where a method reads them twice."""
    for seed, name in enumerate("ab"):
        hub.publish(f"tester/{name}", make.model(tmp_path / name, seed, layers=1, hidden=512, vocab=6000))
    recipe = {
        "merge_method": "slerp",
        "base_model": "tester/a",
        "models": [{"model": "tester/b"}],
        "parameters": {"t": 0.3},
    }
    text = json.dumps(recipe)
    (tmp_path / "r.yml").write_text(text)
    (tmp_path / "l.yml").write_text(text.replace("tester/", f"{tmp_path}/"))
    user.ok("merge", tmp_path / "l.yml", tmp_path / "local")
    user.ok("merge", tmp_path / "r.yml", tmp_path / "out", "--stream", "--transformers-cache", tmp_path / "cache")
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "local")


def test_needed_shards(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A merge fetches the shards that hold what it reads; inspect of a model in the cache reads it there."""
    made = make.tensors(0, layers=4)
    order = dict(sorted(made.items(), key=lambda item: "layers.3." in item[0]))
    names = list(order)
    last = [n for n in names if "layers.3." in n]
    folder = make.write(tmp_path / "a", order, shards=1)
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for i, part in enumerate(([n for n in names if n not in last], last)):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        make.save_file({n: order[n] for n in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    make.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    hub.publish("tester/a", folder)
    recipe: dict[str, Any] = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "tester/a", "layer_range": [0, 3]}]}],
    }
    path, cache = make.write_json(tmp_path / "r.yml", recipe), tmp_path / "cache"
    done = user.ok("merge", path, tmp_path / "out", "--transformers-cache", cache)
    assert "fetches 1 files from the Hub" in done.err
    assert [p.name for p in cache.rglob("*.safetensors")] == ["model-00001-of-00002.safetensors"]
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    mark = hub.sent
    user.ok("merge", path, tmp_path / "again", "--transformers-cache", cache)
    assert hub.sent - mark < 10_000
    assert make.hashes(tmp_path / "again") == make.hashes(tmp_path / "out")


@pytest.mark.parametrize("stream", [True, False])
def test_pinned(stream: bool, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A commit that lands on the Hub during the merge changes nothing of it."""
    for seed, name in enumerate("ab"):
        hub.publish(f"tester/{name}", make.model(tmp_path / name, seed))
    local = make.write_json(tmp_path / "l.yml", make.recipe("linear", tmp_path / "a", tmp_path / "b"))
    user.ok("merge", local, tmp_path / "local")
    other = make.model(tmp_path / "c", 7)
    hub.then = ("api/models/tester/a", lambda: hub.publish("tester/a", other, "second"))
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", "tester/b"))
    user.ok("merge", path, tmp_path / "out", "--transformers-cache", tmp_path / "cache", *["--stream"] * stream)
    assert hub.then is None
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "local")


def test_other_bytes(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A file with other bytes than its hash is asked for once more, then refused, and does not stay in the cache."""
    hub.publish("tester/a", make.model(tmp_path / "a"))
    kept = hub.blobs / next(iter(make.hashes(tmp_path / "a").values()))
    right = kept.read_bytes()
    kept.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    path, cache = (
        make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", "tester/a@main")),
        tmp_path / "cache",
    )
    done = user.plait("merge", path, tmp_path / "out", "--transformers-cache", cache)
    assert done.code == 2
    assert "arrived with other bytes than the Hub lists" in done.err
    assert not (tmp_path / "out").exists()
    kept.write_bytes(right)
    user.ok("merge", path, tmp_path / "out", "--transformers-cache", cache)
    for blob in cache.rglob("blobs/*"):
        if blob.read_bytes() == right:
            blob.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    done = user.plait("merge", path, tmp_path / "again", "--transformers-cache", cache, "--hash-inputs")
    assert done.code == 2
    assert "in the cache is not the file that the Hub has" in done.err


def test_other_length(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A file that is longer than the Hub lists is not read in parts."""
    hub.publish("tester/a", make.model(tmp_path / "a"))
    entry = hub.repo("model", "tester/a").commits[hub.repo("model", "tester/a").refs["main"]]["model.safetensors"]
    kept = hub.blobs / entry["lfs"]
    kept.write_bytes(kept.read_bytes() + b"more")
    listed = entry["size"]
    hub.cdn = 99
    done = user.plait("inspect", "tester/a", "--transformers-cache", tmp_path / "cache")
    assert done.code == 2
    assert "is not the file that the Hub lists" in done.err
    assert f"of {listed}" in done.err


def test_contract(hub: FakeHub, user: User, tmp_path: Path) -> None:
    """A model on the Hub keeps the contract of checkpoints, before and after it is fetched."""
    made = make.tensors(3, dtype=torch.bfloat16)
    hub.publish("tester/a", make.write(tmp_path / "a", made, shards=2))
    code = (
        "from pathlib import Path; from plait.checkpoint.source import fetched, open_model; from plait.types import ModelRef;"
        "from plait.testing.checkpoints import check;"
        f"opened = open_model(ModelRef('tester/a'), cache=Path({str(tmp_path / 'cache')!r}), fetch=False);"
        "print(len(opened.files), check(opened.checkpoint));"
        "done = fetched(opened, ['model.norm.weight'], False); print(len(done.files), check(done.checkpoint))"
    )
    assert user.ok("-c", code).out.splitlines() == ["0 []", "1 []"]
