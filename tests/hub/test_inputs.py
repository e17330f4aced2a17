"""Models from the Hub: huggingface_hub against a server on loopback that speaks the Hub's routes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import make
from hub.conftest import User, environment
from hub.fakehub import FakeHub

SLOW = 1.3  # seconds, more than the user's patience


def test_merge(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Hub ids merge like folders: only the files that are needed are fetched, revisions are pinned, and offline works after."""
    published = []
    for seed, name in enumerate("ab"):
        folder = make.model(tmp_path / name, seed)
        (folder / "training_log.csv").write_text("loss\n")
        (folder / "model.onnx").write_bytes(b"x" * 1000)
        published.append(hub.publish(f"tester/{name}", folder))
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", f"tester/b@{published[1]}"))
    cache = tmp_path / "cache"
    user.ok("merge", path, tmp_path / "out", "--transformers-cache", cache)
    assert "model.safetensors" in hub.fetched()
    assert not {"training_log.csv", "model.onnx"} & set(hub.fetched())
    facts = json.loads((tmp_path / "out" / "plait_provenance.json").read_text())
    assert [model["revision"] for model in facts["models"]] == published
    assert facts["models"][0]["files"][0]["bytes"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    local = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, x in merged.items():
        assert torch.equal(x, ((local[0][name].float() + local[1][name].float()) / 2).to(x.dtype)), name
    front = (tmp_path / "out" / "README.md").read_text()
    assert "- tester/a\n- tester/b\n" in front
    assert "https://huggingface.co/tester/a" in front

    mark = len(hub.requests)
    env = environment(hub.url, tmp_path / "home", HF_HUB_OFFLINE="1")
    command = [sys.executable, "-m", "plait", "merge", path, tmp_path / "again", "--transformers-cache", cache]
    again = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == mark
    assert make.hashes(tmp_path / "again") == make.hashes(tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("tester/nowhere", "no such model, or a private one"),
        ("tester/a@v9", "no revision 'v9'"),
        ("tester/locked", "a gated model"),
        ("tester/hidden", "no such model, or a private one"),
    ],
)
def test_refusals(model: str, words: str, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Missing, private and gated models and missing revisions are told apart, at once, with exit 2."""
    for name in ("a", "locked", "hidden"):
        hub.publish(f"tester/{name}", make.model(tmp_path / name))
    hub.repo("model", "tester/locked").gated = True
    hub.repo("model", "tester/hidden").private = True
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", model))
    done = user.plait("check", path, "--transformers-cache", tmp_path / "cache", token=None)
    assert done.code == 2
    assert words in done.err
    assert sum(status >= 400 and "tester" in path for _, path, status in hub.requests) == 1
    if model == "tester/hidden":
        user.ok("check", path, "--transformers-cache", tmp_path / "cache")


@pytest.mark.parametrize(
    ("status", "words", "tries"),
    [
        (401, "the Hub does not accept the token (401)", 1),
        (403, "the Hub refuses access (403)", 1),
        (404, "the Hub does not have it (404)", 1),
        (429, "too many requests: the Hub asks to wait (429)", 5),
        (500, "the Hub has trouble (500)", 5),
        (503, "the Hub has trouble (503)", 5),
        ("drop", "cannot be had", 5),
        (SLOW, "cannot be had", 5),
    ],
)
@pytest.mark.parametrize("path", ["/api/models/tester/a", "resolve/.*/config.json", "resolve/.*/model.safetensors"])
def test_trouble(
    status: int | str | float, words: str, tries: int, path: str, user: User, hub: FakeHub, tmp_path: Path
) -> None:
    """Whatever the Hub answers, and to whatever question, the tries are few and the message names the trouble."""
    if status == SLOW and "model" not in path.split("/")[-1]:
        pytest.skip("each try takes a second; one kind of question is enough")
    hub.publish("tester/a", make.model(tmp_path / "a"))
    hub.fail(path, status, times=40)
    done = user.plait("inspect", "tester/a", "--transformers-cache", tmp_path / "cache")
    assert done.code == 2
    assert words in done.err
    assert 40 - hub.faults[0][3] <= 3 * tries


@pytest.mark.parametrize("status", [429, 503, "drop", SLOW])
@pytest.mark.parametrize("stream", [True, False])
def test_passing_trouble(status: int | str | float, stream: bool, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A request that fails for a passing reason is repeated, and the merge has the bytes of an undisturbed one."""
    for seed, name in enumerate("ab"):
        hub.publish(f"tester/{name}", make.model(tmp_path / name, seed))
    user.ok(
        "merge",
        make.write_json(tmp_path / "l.yml", make.recipe("linear", tmp_path / "a", tmp_path / "b")),
        tmp_path / "local",
    )
    for path in ("/api/models", "config.json", "model.safetensors"):
        hub.fail(path, status, times=1, Retry_After="0")
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", "tester/b"))
    options = ["--stream"] * stream
    user.ok("merge", recipe, tmp_path / "out", "--transformers-cache", tmp_path / "cache", *options)
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "local")
    assert all(fault[3] == 0 for fault in hub.faults)


@pytest.mark.parametrize("stream", [True, False])
def test_reproduce(stream: bool, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A merge of models on the Hub is made again from the commits of then, on a machine that has never seen them."""
    for seed, name in enumerate("ab"):
        hub.publish(f"tester/{name}", make.model(tmp_path / name, seed, settings={"note": name}))
    recipe = make.recipe("dare_ties", "tester/a", "tester/b", base="tester/a")
    path = make.write_json(tmp_path / "r.yml", {**recipe, "parameters": {"weight": 0.5, "density": 0.5}})
    out = tmp_path / "out"
    user.ok("merge", path, out, "--transformers-cache", tmp_path / "cache", *["--stream"] * stream)
    hub.publish("tester/a", make.model(tmp_path / "c", 7), "another model by now")
    path.unlink()
    done = user.ok("reproduce", out, tmp_path / "again", "--transformers-cache", tmp_path / "new")
    assert "the same: 21 tensors and every file beside them" in done.out
    assert "not as it was then" not in done.err
    assert make.hashes(tmp_path / "again") == make.hashes(out)
    done = user.ok("reproduce", out, "--transformers-cache", tmp_path / "new", "--json")
    assert json.loads(done.out)["changed"] == []
    (cached,) = (tmp_path / "new" / "models--tester--b").rglob("model.safetensors")
    raw = cached.read_bytes()
    cached.resolve().write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    done = user.plait("reproduce", out, "--transformers-cache", tmp_path / "new")
    assert done.code == 2
    assert "found:  1 of 21 tensors: model.norm.weight" in done.err
    assert stream or "not as it was then: models: tester/b" in done.err


def test_reproduce_what_is_gone(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Where the Hub has not the commit of then any more, that is said, and nothing is left."""
    hub.publish("tester/a", make.model(tmp_path / "a"))
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a"))
    user.ok("merge", path, tmp_path / "out", "--transformers-cache", tmp_path / "cache")
    hub.repos.clear()
    hub.publish("tester/a", make.model(tmp_path / "b", 1), "written anew")
    before = sorted(tmp_path.iterdir())
    done = user.plait("reproduce", tmp_path / "out", "--transformers-cache", tmp_path / "new")
    assert done.code == 2
    assert "no revision" in done.err
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "new"] == before
