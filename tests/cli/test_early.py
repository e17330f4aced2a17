"""What the disk fetches while a verb loads: beginnings of the models that a recipe names, and nothing that stops a merge."""

from __future__ import annotations

import os
import sys
import time
from mmap import PAGESIZE
from pathlib import Path

import pytest

from plait.checkpoint.ahead import cached
from plait.cli._early import STEP, beginnings, weights
from plait.kernels import library

MORE = 2 * STEP  # bytes that may come unasked

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


@pytest.mark.skipif(library() is None or sys.platform != "linux", reason="nothing says what is in the page cache")
def test_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the limit, side by side, all of it, little more, and nothing of what nobody named."""
    monkeypatch.setattr("plait.checkpoint.ahead.LIMIT", 4 * STEP)
    files = [tmp_path / name / "model.safetensors" for name in ("a", "b", "other")]
    for path in files:
        path.parent.mkdir()
        path.write_bytes(bytes(5 * STEP))
    (tmp_path / "recipe.yml").write_text("models:\n- model: a\n- model: b\n")
    opened = [os.open(path, os.O_RDONLY) for path in files]
    try:
        for file in opened:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if any(cached(file, 0) for file in opened):
            pytest.skip("this file system keeps what it was told to drop")

        def pages(file: int, start: int, stop: int) -> int:
            return sum(bool(cached(file, at)) for at in range(start, stop, PAGESIZE))

        share, size = 2 * STEP, 5 * STEP
        with beginnings(str(tmp_path / "recipe.yml")):
            until = time.monotonic() + 60
            while any(pages(file, 0, share) < share // PAGESIZE for file in opened[:2]) and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.1)
        assert [pages(file, 0, share) for file in opened] == [share // PAGESIZE, share // PAGESIZE, 0]
        assert [pages(file, share + MORE, size) for file in opened] == [0, 0, 0]
        assert not pages(opened[2], 0, size)
    finally:
        for file in opened:
            os.close(file)


def test_threads_share_as_before(tmp_path: Path) -> None:
    """Loading gives way to the disk more often; what comes after it does not."""
    before, during = sys.getswitchinterval(), list[float]()
    with pytest.raises(KeyError), beginnings(str(tmp_path / "recipe.yml")):
        {}[during.append(sys.getswitchinterval())]
    assert during[0] < before
    assert sys.getswitchinterval() == before
