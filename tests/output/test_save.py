"""What `save` promises about the output directory, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import make
import plait
from plait.errors import MergeError, OutputError, PlaitError
from plait.merged import Merge
from plait.testing.checkpoints import same
from plait.writer import check_files, check_output


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)


@pytest.fixture
def merge(models: tuple[Path, Path]) -> Merge:
    return plait.merge(make.recipe("linear", *models))


def listing(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


WHOLE = ["README.md", "config.json", "model.safetensors", "plait_config.yml", "plait_provenance.json"]
WHOLE += ["tokenizer.json", "tokenizer_config.json"]


def test_whole(merge: Merge, tmp_path: Path) -> None:
    """A new directory holds the model and nothing else; parents are made."""
    saved = merge.save(tmp_path / "new" / "out")
    assert listing(saved.out) == WHOLE
    assert sorted(path.name for path in saved.files) == WHOLE
    assert (saved.tensors, saved.nbytes) == (21, (saved.out / "model.safetensors").stat().st_size)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_row_41_file_modes(umask: int, merge: Merge, tmp_path: Path) -> None:
    """Every file has the mode that the umask gives."""
    before = os.umask(umask)
    try:
        out = merge.save(tmp_path / "out").out
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask}


def test_not_empty(merge: Merge, tmp_path: Path) -> None:
    """A directory that holds something is refused and left alone; an empty one is taken."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        merge.save(out)
    assert listing(out) == ["notes.txt"]
    (out / "notes.txt").unlink()
    merge.save(out)
    assert listing(out) == WHOLE


def test_file_as_output(merge: Merge, tmp_path: Path) -> None:
    """An OUT that is a file is refused, with `force` too."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="OUT is a file"):
        merge.save(tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_row_16_stale_output_dir(models: tuple[Path, Path], tmp_path: Path) -> None:
    """With `force` nothing of an old model is left, be it a shard, an index, a template or a setting; other files stay."""
    old, new = models
    make.write_json(old / "generation_config.json", {})
    make.write_json(old / "special_tokens_map.json", {})
    (old / "chat_template.jinja").write_text("old")
    (old / "additional_chat_templates").mkdir()
    (old / "additional_chat_templates" / "tool.jinja").write_text("old")
    out = tmp_path / "out"
    plait.merge(make.recipe("linear", old), shard_size=2000).save(out)
    (out / "pytorch_model.bin").write_text("old")
    (out / "notes.txt").write_text("mine")
    merge = plait.merge(make.recipe("linear", new))
    merge.save(out, force=True)
    assert listing(out) == sorted([*WHOLE, "notes.txt"])
    assert [name for name, x in load_file(out / "model.safetensors").items() if not same(x, merge.read(name))] == []


def test_force_to_shards(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A single file gives way to shards in the same manner, and what is read back is the new model."""
    out = tmp_path / "out"
    plait.merge(make.recipe("linear", models[0])).save(out)
    merge = plait.merge(make.recipe("linear", models[1]), shard_size=2000)
    merge.save(out, force=True)
    assert not (out / "model.safetensors").exists()
    read = plait.open(out)
    assert [name for name in merge.specs if not same(read.read(name), merge.read(name))] == []


@pytest.mark.parametrize("spelling", ["plain", "dots", "symlink", "file", "linked file"])
def test_row_17_output_is_input(spelling: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    """An OUT that is an input is refused even with `force`, however it is spelt, and the input stays as it was."""
    before = make.hashes(models[0], "*")
    out, named = models[0], models[0]
    if spelling == "dots":
        out = models[1] / ".." / models[0].name
    elif spelling == "symlink":
        out = tmp_path / "link"
        out.symlink_to(models[0])
    elif spelling == "file":
        named = models[0] / "model.safetensors"
    elif spelling == "linked file":
        named = tmp_path / "links"
        named.mkdir()
        for file in models[0].iterdir():
            (named / file.name).symlink_to(file)
    merge = plait.merge(make.recipe("linear", named, models[1], parameters={"weight": 0.5}), allow_crimes=True)
    with pytest.raises(OutputError, match="overwrite an input"):
        merge.save(out, force=True)
    assert make.hashes(models[0], "*") == before


def test_failure_in_the_middle(models: tuple[Path, Path], tmp_path: Path) -> None:
    """An error in the middle of the work leaves no OUT, and no parent that was made for it."""
    made = make.tensors(2)
    made["model.layers.1.mlp.up_proj.weight"][3, 2] = torch.nan
    make.write(models[1], made)
    with pytest.raises(MergeError):
        plait.merge(make.recipe("linear", *models)).save(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_failure_over_an_old_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    """An error in the middle of a replacement leaves the old model as it was, every byte."""
    out = plait.merge(make.recipe("linear", models[0])).save(tmp_path / "out").out
    before = make.hashes(out, "*")
    made = make.tensors(2)
    made["lm_head.weight"][0, 0] = torch.inf
    make.write(models[1], made)
    with pytest.raises(MergeError):
        plait.merge(make.recipe("linear", *models)).save(out, force=True)
    assert make.hashes(out, "*") == before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", ["linear", "slerp", "model_stock", "ties", "passthrough"])
def test_row_12_nan_passes(method: str, bad: float, models: tuple[Path, Path], tmp_path: Path) -> None:
    """One value that is not finite stops the merge with the names of tensor and model; `allow_nonfinite` goes on."""
    name = "model.layers.0.self_attn.q_proj.weight"
    made = make.tensors(2)
    made[name][5, 1] = bad
    make.write(models[1], made)
    third = make.model(tmp_path / "c", 3)
    recipes = {
        "linear": make.recipe("linear", *models),
        "slerp": make.recipe("slerp", models[1], base=models[0], parameters={"t": 0.5}),
        "model_stock": make.recipe("model_stock", models[1], third, base=models[0], parameters={}),
        "ties": make.recipe("ties", models[1], third, base=models[0], parameters={"weight": 1, "density": 0.5}),
        "passthrough": make.recipe("passthrough", models[1], parameters={}),
    }
    merge = plait.merge(recipes[method])
    with pytest.raises(MergeError) as caught:
        merge.save(tmp_path / "out")
    assert name in caught.value.what
    assert str(models[1]) in str(caught.value)
    merge.save(tmp_path / "out", allow_nonfinite=True)
    assert not load_file(tmp_path / "out" / "model.safetensors")[name].isfinite().all()


def test_overflow(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A finite value that the output's dtype cannot hold is told apart from a bad input."""
    recipe = make.recipe("linear", *models, parameters={"weight": 1e6, "normalize": False}, dtype="float16")
    with pytest.raises(MergeError, match="beyond the range of float16"):
        plait.merge(recipe).save(tmp_path / "out")


def test_row_11_zero_weight_sum(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights that sum to zero are an error of the plan, with the recipe's line, before any work."""
    path = tmp_path / "recipe.yml"
    path.write_text(
        f"merge_method: linear\nmodels:\n- model: {models[0]}\n  parameters: {{weight: 1}}\n"
        f"- model: {models[1]}\n  parameters: {{weight: -1}}\n"
    )
    (error,) = plait.check(path)
    assert error.where is not None
    assert error.where.line == 4
    assert "sum" in error.what


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_closed(mode: int, nobody: Any) -> None:
    """A place that may not be written to, or not be looked into, is refused before the work."""
    folder, become = nobody
    closed = folder / "closed"
    closed.mkdir(mode=mode)
    with become(), pytest.raises(OutputError, match="cannot be written to"):
        check_output(closed / "new" / "out", 1000, [])


def test_disk_too_small(tmp_path: Path) -> None:
    """An output that the disk cannot hold is refused before the work, with both sizes."""
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / "out", 10**18, [])
    assert caught.value.wanted == "1000000000.00 GB"


def test_full_disk(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A disk that refuses bytes in the middle is told in one message, exit 2, and nothing is left behind."""
    recipe = make.write_json(tmp_path / "recipe.yml", make.recipe("linear", *models))
    small = f"ulimit -f 4; exec {sys.executable} -m plait merge {recipe} {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", small], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: writing to" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_more_files_than_usual(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Models and shards in many files: a limit that may be raised is, another is told before anything is written."""
    path, out = make.write_json(tmp_path / "recipe.yml", make.recipe("linear", *models)), tmp_path / "out"
    command = f"{sys.executable} -m plait merge {path} {out} --out-shard-size 1KB"
    done = subprocess.run(["bash", "-c", f"ulimit -n 70; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: the merge has too many files for this system" in done.stderr
    assert "a limit of 70" in done.stderr
    assert "--out-shard-size" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    done = subprocess.run(["bash", "-c", f"ulimit -Sn 40; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.safetensors"))) == 8
    with pytest.raises(OutputError, match="too many files"):
        check_files(1 << 40)


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_stopped(kill: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, or a polite kill, in the middle of the work leaves no OUT, exits with 130 (143) and shows no traceback."""
    models = [make.model(tmp_path / str(i), i, hidden=256, vocab=20_000) for i in range(3)]
    # della ranks every row, which takes seconds here: the signal comes long before the end
    recipe = make.recipe("della", *models[1:], base=models[0], parameters={"weight": 1.0, "density": 0.5})
    path, out = make.write_json(tmp_path / "recipe.yml", recipe), tmp_path / "out"
    command = [sys.executable, "-m", "plait", "merge", path, out, "-j", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not any(out.glob("*.partial")) and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + kill
    assert "Traceback" not in errors
    assert ("stopped" in errors) == (kill == signal.SIGINT)
    assert not out.exists()


FAILING: dict[str, Callable[[Path], Any]] = {
    "no adapter": lambda a: make.recipe("linear", f"{a}+nowhere"),
    "no method": lambda a: make.recipe("linaer", a),
    "no template": lambda a: make.recipe("linear", a, chat_template="chadml"),
    "no layer": lambda a: {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(a), "layer_range": [0, 3]}]}],
    },
}


@pytest.mark.parametrize("case", FAILING)
def test_row_39_found_before_the_work(case: str, models: tuple[Path, Path]) -> None:
    """What can be known before the work is told before the work."""
    with pytest.raises(PlaitError):
        plait.merge(FAILING[case](models[0]))
