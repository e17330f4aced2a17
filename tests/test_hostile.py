"""Hostile and broken files are refused: named, explained, without harm."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

import hostile
import make
import plait
from plait.cli import main
from plait.errors import ModelError, PlaitError
from plait.facts import model_json


@pytest.mark.parametrize("name", hostile.ALL)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of quantised and sparse tensors that it writes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that lies is refused with its name, what was wanted and what was found: exit 2, no traceback, no OUT, no harm."""
    folder, good, out = tmp_path / "bad", make.model(tmp_path / "good"), tmp_path / "out"
    path = hostile.ALL[name](make.model(folder))
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    begun = time.process_time()
    with pytest.raises(ModelError) as caught:
        plait.open(folder)
    assert str(path) in str(caught.value) or str(folder) in caught.value.what
    assert caught.value.found
    assert caught.value.wanted or caught.value.do
    assert time.process_time() - begun < 2
    recipe = make.write_json(tmp_path / "recipe.yml", make.recipe("linear", good, folder))
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(recipe), str(out)])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("error: ")
    assert all(c.isprintable() or c == "\n" for c in said.err)
    assert not out.exists()
    recipe.unlink()
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


ODD: list[Any] = [None, True, 0, -1, 3.5, 10**30, "", "4", [], [1], ["x"], {}, {"a": 1}, [None] * 3]
KEYS = ["architectures", "model_type", "dtype", "torch_dtype", "num_hidden_layers", "vocab_size", "tie_word_embeddings"]
KEYS += [
    "layer_types",
    "text_config",
    "quantization_config",
    "hidden_size",
    "auto_map",
    "num_attention_heads",
    "eos_token_id",
]


@pytest.mark.parametrize("key", KEYS)
def test_odd_configs(key: str, tmp_path: Path) -> None:
    """Whatever a config says, the merge is planned, or refused by an error that a person can read; slices too."""
    good = make.model(tmp_path / "good")
    bad = make.model(tmp_path / "bad")
    whole = make.recipe("linear", bad, good)
    sliced = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(bad), "layer_range": list(span)}]} for span in ((0, 2), (1, 2))],
    }
    settings = make.config(make.tensors())
    for value in ODD:
        make.write_json(bad / "config.json", settings | {key: value})
        with contextlib.suppress(PlaitError):
            assert model_json(plait.inspect(bad))["tensors"] == 21
        for recipe in (whole, sliced):
            for problem in plait.check(recipe, allow_crimes=True):
                assert str(problem)
            with contextlib.suppress(PlaitError):
                plait.merge(recipe).read("model.norm.weight")


def test_row_26_a_good_pickle_is_read(tmp_path: Path) -> None:
    """The refusals are not for pickles as such: tensors in one are read."""
    import torch

    folder = make.model(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    torch.save(make.tensors(), folder / "pytorch_model.bin")
    assert set(plait.open(folder).specs) == set(make.tensors())


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling link"])
def test_odd_files(kind: str, tmp_path: Path) -> None:
    """A weight file that is no file is not waited for."""
    folder = make.model(tmp_path / "a")
    path = folder / "model.safetensors"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ModelError):
        plait.open(folder)


def test_row_40_lost_shard(tmp_path: Path) -> None:
    """A shard that is missing is told with the folder and the file's name, with an index and without."""
    for index in (True, False):
        folder = make.write(tmp_path / str(index), make.tensors(), shards=3, index=index)
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(ModelError, match="shards") as caught:
            plait.open(folder)
        assert str(folder) in caught.value.what


def test_row_43_mistyped_path(tmp_path: Path) -> None:
    """A path that is not there is told at once."""
    begun = time.monotonic()
    for path in ("models/not/here", "./not-here", str(tmp_path / "x"), "org/nothing-of-this-name"):
        with pytest.raises(ModelError):
            plait.open(path)
    assert time.monotonic() - begun < 5
