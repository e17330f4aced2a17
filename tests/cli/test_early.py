"""What the disk fetches while a verb loads: beginnings of the models that a recipe names, and nothing that stops a merge."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from plait.checkpoint.ahead import cached
from plait.cli import _early
from plait.cli._early import STEP, beginnings, weights

RECIPE = """
base_model: ./base
merge_method: ties
models:
- model: {0}/absolute   # a comment, as in model: ignored
- model: "quoted"
  parameters: {{weight: 1}}
- {{model: flow, parameters: {{weight: 1}}}}
- model: with+adapter
- model: revised@main
- model: org/name-on-the-hub
# model: ignored
- model: empty
- model: ./base
"""


def test_weights(tmp_path: Path) -> None:
    """In the order of the recipe, each once, the first file of each."""
    for name in ("base", "absolute", "quoted", "flow", "with", "revised", "ignored"):
        (tmp_path / name).mkdir()
        for number in (2, 1):
            (tmp_path / name / f"model-0000{number}-of-00002.safetensors").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yml").write_text(RECIPE.format(tmp_path))
    found = weights(str(tmp_path / "recipe.yml"))
    assert [path.parent.name for path in found] == ["base", "absolute", "quoted", "flow", "with", "revised"]
    assert {path.name for path in found} == {"model-00001-of-00002.safetensors"}


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe\x00", b"model:", b"- model: \x00", b"- model: ~nobody-of-this-name/x"]
)
def test_no_recipe(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "recipe.yml").write_bytes(text)
    assert weights(str(tmp_path / "recipe.yml")) == []
    assert weights(str(tmp_path / "nothing.yml")) == []
    assert weights(str(tmp_path)) == []


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux says what is in the page cache")
def test_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the limit, side by side, and not one byte of what nobody named."""
    monkeypatch.setattr(_early, "LIMIT", 4 * STEP)
    files = [tmp_path / name / "model.safetensors" for name in ("a", "b", "other")]
    for path in files:
        path.parent.mkdir()
        path.write_bytes(bytes(4 * STEP))
    (tmp_path / "recipe.yml").write_text("models:\n- model: a\n- model: b\n")
    opened = [os.open(path, os.O_RDONLY) for path in files]
    try:
        for file in opened:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if any(cached(file, 0) for file in opened):
            pytest.skip("this file system keeps what it was told to drop")
        within, beyond = 2 * STEP - 1, 4 * STEP - 1  # the system may fetch a little more than it is told
        with beginnings(str(tmp_path / "recipe.yml")):
            until = time.monotonic() + 30
            while not all(cached(file, within) for file in opened[:2]) and time.monotonic() < until:
                time.sleep(0.01)
        assert [cached(file, within) for file in opened] == [True, True, False]
        assert [cached(file, beyond) for file in opened] == [False, False, False]
    finally:
        for file in opened:
            os.close(file)
