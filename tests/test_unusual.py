"""Rarer mistakes, by the command line: packages that are not installed, files of another kind, settings that say nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import make
import plait

Refused = Callable[..., str]


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)


def lacking(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As where the package is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("package", "words", "mend"),
    [
        ("pygal", ["diff", "{a}", "{b}", "--page", "{a}.html"], "plait[page]"),
        ("gguf", ["export", "gguf", "{a}", "{a}.gguf"], "plait[gguf]"),
        ("gguf", ["inspect", "{there}"], "plait[gguf]"),
    ],
)
def test_packages(
    package: str,
    words: list[str],
    mend: str,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    """What needs a package that is not installed says what to install."""
    (tmp_path / "there.gguf").write_bytes(b"GGUF" + bytes(100))
    lacking(monkeypatch, package)
    given = {"a": models[0], "b": models[1], "there": tmp_path / "there.gguf"}
    assert f'pip install "{mend}"' in refused(
        "gguf" if package == "gguf" else "pygal", *(w.format(**given) for w in words)
    )


#: words of the message -> what a recipe of the models a and b has besides
RECIPES: dict[str, dict[str, Any]] = {
    "'when' is a mapping": {"rules": [{"when": "norm", "merge_method": "linear"}]},
    "a name is text": {"rules": [{"when": {"name": 3}, "merge_method": "linear"}]},
    "are an empty list": {"rules": [{"when": {"layer": []}, "merge_method": "linear"}]},
    "ties needs a base_model": {
        "rules": [{"when": {"kind": "mlp"}, "merge_method": "ties", "parameters": {"weight": 1, "density": 0.5}}]
    },
    "two adapters": {"models": [{"model": {"model": "a+b", "lora": "c"}}]},
}


@pytest.mark.parametrize("said", RECIPES)
def test_recipes(said: str, models: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    """Rules and references that cannot be meant are refused before the work."""
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("linear", *models) | RECIPES[said])
    refused(said, "merge", recipe, tmp_path / "out")


def test_no_stages(models: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    """A file of another kind has no stages."""
    experts = [{"source_model": str(model), "positive_prompts": [model.name]} for model in models]
    mixture = make.write_json(tmp_path / "moe.yml", {"base_model": str(models[0]), "experts": experts})
    refused("this is no file of stages", "multi", mixture, tmp_path / "out")


def test_files_that_are_none(models: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    """Several files that nothing says belong together, and an archive that is none, are no model."""
    several, damaged = models
    for name in ("one", "two"):
        shutil.copy(several / "model.safetensors", several / f"{name}.safetensors")
    (several / "model.safetensors").unlink()
    refused("has several weight files", "inspect", several)
    (damaged / "model.safetensors").unlink()
    torch.save(make.tensors(), damaged / "pytorch_model.bin")
    whole = (damaged / "pytorch_model.bin").read_bytes()
    (damaged / "pytorch_model.bin").write_bytes(whole.replace(b"PK\1\2", b"PK\1\3"))
    refused("is a damaged archive", "inspect", damaged)


def test_no_stack(tmp_path: Path, refused: Refused) -> None:
    """Layers are dropped from a model with one stack of them."""
    made = {k: x for k, x in make.tensors().items() if ".layers." not in k}
    refused("has no stacks of layers", "surgery", "drop", make.write(tmp_path / "flat", made), "0")


def test_no_network(models: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    """Nothing is pushed where the Hub is not to be asked."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    refused("the Hub is not to be asked", "push", out, "me/mine")
