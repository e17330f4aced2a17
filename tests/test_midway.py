"""What goes wrong while a merge writes: told in parts, exit 2; OUT is absent, or goes on to an undisturbed run's bytes.

Causes that need a disk of their own, and stops by signals, are in tests/output/test_interrupted.py.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import make
import plait
import plait.journal
from plait.cli import main
from plait.errors import OutputError
from plait.journal import NAME, read

SMALL = {"hidden": 32, "vocab": 256}
Trouble = Callable[[Path], Any]
WEIGHTS = "b/model.safetensors"


def run(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> tuple[int, str]:
    """Merge by the recipe in the folder into its OUT; returns exit code and what is told."""
    command = ["merge", str(folder / "r.yml"), str(folder / "out"), "--quiet", "-j", "1", "--out-shard-size", "50KB"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*command, *options])
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models and a recipe over them; tensors are finished for good as soon as they are written."""
    monkeypatch.setattr(plait.journal, "INTERVAL", 0.0005)
    models = [make.model(tmp_path / name, seed, **SMALL) for seed, name in enumerate("ab")]
    make.write_json(tmp_path / "r.yml", make.recipe("linear", *models))
    return tmp_path


def undisturbed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The hashes of all files of a merge that nothing happens to, which is taken away."""
    assert run(capsys, folder) == (0, "")
    found = make.hashes(folder / "out", "*")
    shutil.rmtree(folder / "out")
    return found


def in_the_midst(patch: pytest.MonkeyPatch, trouble: Callable[[], Any], writes: int = 14) -> None:
    """Let it happen before so many pieces have been written."""
    real, calls = os.pwrite, []

    def writing(*given: Any) -> int:
        calls.append(given)
        if len(calls) == writes:
            trouble()
        return real(*given)

    patch.setattr(os, "pwrite", writing)


def until_kept(out: Path) -> None:
    """Wait until a tensor is finished for good."""
    until = time.monotonic() + 10
    while not ((record := read(out / NAME)) and record.tensors) and time.monotonic() < until:
        time.sleep(0.001)


def shorter(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 20_000)


def rewritten(folder: Path) -> None:
    """Other weights in the same file."""
    size = (folder / WEIGHTS).stat().st_size
    with open(folder / WEIGHTS, "r+b") as file:
        file.seek(size - 400)
        file.write(bytes(400))


def lost(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "a" / "tokenizer.json").unlink()


def another_tokenizer(folder: Path) -> None:
    (folder / "a" / "tokenizer.json").write_text("{}")


def out_lost(folder: Path) -> None:
    shutil.rmtree(folder / "out")


def shard_lost(folder: Path) -> None:
    min((folder / "out").glob("*.partial")).unlink()


def in_the_way(folder: Path) -> None:
    (folder / "out" / "README.md").mkdir()


def cleared(folder: Path) -> None:
    (folder / "out" / "README.md").rmdir()


def restored(folder: Path) -> None:
    """The inputs are what they were."""
    for name in "ab":
        shutil.copytree(folder / "kept" / name, folder / name, dirs_exist_ok=True)


#: trouble -> (words of the message, whether OUT stays, how it is mended)
TROUBLES: dict[Trouble, tuple[str, bool, Trouble]] = {
    shorter: ("b/model.safetensors changed during the merge", False, restored),
    rewritten: ("b/model.safetensors changed during the merge", False, restored),
    lost: ("b/model.safetensors was removed during the merge", False, restored),
    no_tokenizer: ("a/tokenizer.json was removed during the merge", True, restored),
    another_tokenizer: ("a/tokenizer.json changed during the merge", True, restored),
    out_lost: ("out failed", False, lambda folder: None),
    shard_lost: ("out failed", True, lambda folder: None),
    in_the_way: ("out failed", True, cleared),
}


def told(said: str, code: int, found: str) -> None:
    """Exit 2, no traceback, three parts."""
    assert code == 2, found
    assert said in found
    assert "Traceback" not in found
    for part in ("wanted", "found", "do"):
        assert re.search(rf"^  {part}: +\S", found, re.M), f"{part} is not told"


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda f: f.__name__)
def test_in_the_midst(
    trouble: Trouble, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inputs and outputs that others change or remove meanwhile: once that is mended, --resume gives the same bytes."""
    said, stays, mend = TROUBLES[trouble]
    expected = undisturbed(folder, capsys)
    for name in "ab":
        shutil.copytree(folder / name, folder / "kept" / name)
    with monkeypatch.context() as patch:
        in_the_midst(patch, lambda: trouble(folder))
        told(said, *run(capsys, folder))
    assert (folder / "out").exists() == stays
    assert not stays or read(folder / "out" / NAME)
    mend(folder)
    code, found = run(capsys, folder, "--resume")
    assert code == 0, found
    assert make.hashes(folder / "out", "*") == expected


def test_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickled input that becomes shorter meanwhile is told: it is not mapped, which would kill the process."""
    for name in "ab":
        file = folder / name / "model.safetensors"
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    weights = folder / "b" / "pytorch_model.bin"
    with monkeypatch.context() as patch:
        in_the_midst(patch, lambda: os.truncate(weights, 5_000))
        told(f"{weights} changed during the merge", *run(capsys, folder))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("limit", [10, 5_000, 45_000])
def test_files_too_large(
    limit: int,
    folder: Path,
    small_files: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limit on the size of files, from the journal's first line to a shard: without it, --resume gives the same bytes."""
    expected = undisturbed(folder, capsys)
    with small_files(limit):
        told("out", *run(capsys, folder))
    assert not (folder / "out").exists() or read(folder / "out" / NAME)
    assert run(capsys, folder, "--resume")[0] == 0
    assert make.hashes(folder / "out", "*") == expected


def test_two_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A second merge into OUT is refused, whatever its options; the first is undisturbed."""
    expected, refused = undisturbed(folder, capsys), list[str]()

    def second() -> None:
        for options in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(OutputError, match="another merge is writing to") as caught:
                plait.merge(folder / "r.yml").save(folder / "out", **options)
            refused.append(str(caught.value.found))

    with monkeypatch.context() as patch:
        in_the_midst(patch, second)
        assert run(capsys, folder) == (0, "")
    assert len(refused) == 3
    assert make.hashes(folder / "out", "*") == expected


def test_no_space_for_the_tokenizer(folder: Path, small_files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that takes the weights and not what stands beside them: the weights stay, and --resume goes on."""
    tokenizer = folder / "a" / "tokenizer.json"
    make.write_json(tokenizer, make.tokenizer(256) | {"of_no_meaning": "x" * 100_000})
    expected = undisturbed(folder, capsys)
    with small_files(60_000):
        told("out failed after the weights", *run(capsys, folder))
    assert read(folder / "out" / NAME)
    assert run(capsys, folder, "--resume")[0] == 0
    assert make.hashes(folder / "out", "*") == expected


@pytest.mark.parametrize("value", ["nan", "inf", "1e38"])
def test_a_late_value(
    value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that is not finite, or not in float16, in the last tensor: with other weights it is another merge, which a
    resume refuses and --force makes anew, with the bytes of an undisturbed run."""
    make.write_json(folder / "r.yml", make.recipe("linear", folder / "a", folder / "b", out_dtype="float16"))
    whole = make.tensors(1, **SMALL)
    broken = {name: x.clone() for name, x in whole.items()}
    broken["lm_head.weight"][-1, -1] = float(value)
    make.write(folder / "b", broken)
    with monkeypatch.context() as patch:
        in_the_midst(patch, lambda: until_kept(folder / "out"))
        told("lm_head.weight", *run(capsys, folder))
    kept = read(folder / "out" / NAME)
    assert kept
    assert "lm_head.weight" not in kept.tensors
    before = make.hashes(folder / "out", "*")
    make.write(folder / "b", whole)
    told("was another one", *run(capsys, folder, "--resume"))
    assert make.hashes(folder / "out", "*") == before
    assert run(capsys, folder, "--resume", "--force")[0] == 0
    found = make.hashes(folder / "out", "*")
    shutil.rmtree(folder / "out")
    assert run(capsys, folder)[0] == 0
    assert make.hashes(folder / "out", "*") == found


def test_a_late_value_that_is_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a value that is not finite --resume --allow-nonfinite goes on, as the message says; --resume alone then does not."""
    broken = {name: x.clone() for name, x in make.tensors(1, **SMALL).items()}
    broken["lm_head.weight"][-1, -1] = float("nan")
    make.write(folder / "b", broken)
    assert run(capsys, folder, "--allow-nonfinite")[0] == 0
    expected = make.hashes(folder / "out", "*")
    shutil.rmtree(folder / "out")
    with monkeypatch.context() as patch:
        in_the_midst(patch, lambda: until_kept(folder / "out"))
        code, found = run(capsys, folder)
        told("--allow-nonfinite writes it all the same", code, found)
        assert "--resume --allow-nonfinite" in found
    kept = read(folder / "out" / NAME)
    assert kept
    assert kept.tensors
    with monkeypatch.context() as patch:
        in_the_midst(patch, lambda: in_the_way(folder), writes=2)
        told("out failed", *run(capsys, folder, "--resume", "--allow-nonfinite"))
    told("values (was any, is finite)", *run(capsys, folder, "--resume"))
    cleared(folder)
    assert run(capsys, folder, "--resume", "--allow-nonfinite")[0] == 0
    assert make.hashes(folder / "out", "*") == expected
