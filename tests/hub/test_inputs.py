"""Models from the Hub: huggingface_hub against a server on loopback that speaks the Hub's routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import make
from hub.fakehub import FakeHub

UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
for repo, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    api.create_repo(repo, exist_ok=True)
    print(api.upload_folder(repo_id=repo, folder_path=folder).oid)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub(blobs=tmp_path / "blobs") as server:
        yield server


@pytest.fixture
def around(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose Hub is this server, with a cache of their own."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


def run(command: list[Any], around: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], env={**around, **more}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def published(around: dict[str, str], tmp_path: Path) -> list[str]:
    """The commits of two models that were uploaded, with files among them that a merge does not need."""
    folders = [make.model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    for folder in folders:
        (folder / "training_log.csv").write_text("loss\n")
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"x" * 1000)
    done = run(["-c", UPLOAD, "tester/a", folders[0], "tester/b", folders[1]], around)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_merge(published: list[str], hub: FakeHub, around: dict[str, str], tmp_path: Path) -> None:
    """Hub ids merge like folders: only the files that are needed are fetched, revisions are pinned, and offline works after."""
    first = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", f"tester/b@{published[1]}"))
    mark = len(hub.requests)
    done = run(["-m", "plait", "merge", first, tmp_path / "out"], around)
    assert done.returncode == 0, done.stderr
    fetched = {path.split("/")[-1].split("?")[0] for _, path, _ in hub.requests[mark:]}
    assert "model.safetensors" in fetched
    assert not {"training_log.csv", "model.onnx"} & fetched
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
    again = run(["-m", "plait", "merge", first, tmp_path / "again"], around, HF_HUB_OFFLINE="1")
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
def test_refusals(
    model: str, words: str, published: list[str], hub: FakeHub, around: dict[str, str], tmp_path: Path
) -> None:
    """Missing, private and gated models and missing revisions are told apart, with exit 2, and the token is not shown."""
    for name in ("tester/locked", "tester/hidden"):
        assert run(["-c", UPLOAD, name, tmp_path / "a"], around).returncode == 0
    hub.repo("model", "tester/locked").gated = True
    hub.repo("model", "tester/hidden").private = True
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", "tester/a", model))
    stranger = {k: v for k, v in around.items() if k != "HF_TOKEN"}
    done = run(["-m", "plait", "check", path], stranger)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.token not in done.stderr + done.stdout
