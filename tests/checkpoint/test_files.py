"""Weight files that are not what they should be, or that the system does not give us: refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import make
import plait
from plait.cli import main
from plait.errors import ModelError

Refused = Callable[..., str]


def shards(folder: Path, suffix: str) -> None:
    """Two files without an index; the second has a tensor of the first again."""
    made = make.tensors()
    first, *_ = made
    for number, part in enumerate(({first: made[first]}, made), 1):
        name = f"{'pytorch_' if suffix == 'bin' else ''}model-{number:05}-of-00002.{suffix}"
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)


def coded(folder: Path, code: str, bits: int) -> None:
    """All tensors in a dtype of so many bits, all zeros."""
    at, entries = 0, {}
    for name, x in make.tensors().items():
        entries[name] = {"dtype": code, "shape": list(x.shape), "data_offsets": [at, at := at + x.numel() * bits // 8]}
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(at))


def odd(folder: Path) -> None:
    made = make.tensors()
    torch.save(
        made | {"model.norm.weight": made["model.norm.weight"].to(torch.complex128)}, folder / "pytorch_model.bin"
    )


#: fault -> (what the message has, what it tells more, how it comes about)
WRONG: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "twice": ("is in two files", "model-00001-of-00002", lambda f: shards(f, "safetensors")),
    "twice pickled": ("is in two files", "model-00002-of-00002.bin", lambda f: shards(f, "bin")),
    "a dtype of PyTorch's alone": ("tensors of torch.complex128 cannot be read", "model.norm.weight", odd),
    "half a byte": ("tensors in F4 cannot be merged", "model.embed_tokens.weight", lambda f: coded(f, "F4", 4)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_refused(fault: str, tmp_path: Path, refused: Refused) -> None:
    """What cannot be read as a model's tensors is refused before the work, by the names of tensor and file."""
    said, more, spoil = WRONG[fault]
    a, b = make.model(tmp_path / "a"), make.model(tmp_path / "b")
    (b / "model.safetensors").unlink()
    spoil(b)
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("linear", a, b))
    assert more in refused(said, "merge", recipe, tmp_path / "out")


def test_half_bytes_are_not_read(tmp_path: Path) -> None:
    """A dtype that has no entries of whole bytes is told by name when a tensor is read; its shape can be looked at."""
    folder = make.model(tmp_path / "a")
    coded(folder, "F4", 4)
    opened = plait.open(folder)
    assert opened.specs["model.norm.weight"].shape == (8,)
    with pytest.raises(ModelError, match="tensors in F4 cannot be read") as caught:
        opened.read("model.norm.weight")
    assert "float4" in str(caught.value.found)
    assert "quantised from" in str(caught.value.do)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "."])
@pytest.mark.parametrize("verb", ["merge", "export"])
def test_not_permitted(verb: str, name: str, nobody: Any, refused: Refused) -> None:
    """A file or a folder of a model that may not be read is told by name before the work."""
    folder, become = nobody
    model = make.model(folder / "a")
    (model / "model.safetensors").chmod(0o644)
    recipe, out = make.write_json(folder / "r.yml", make.recipe("linear", model)), folder / "out.gguf"
    command = ["merge", recipe, "--quiet"] if verb == "merge" else ["export", "gguf", recipe]
    with pytest.raises(SystemExit):  # loads all modules, which nobody may not
        main([str(word) for word in [*command, folder / "before.gguf"]])
    (model / name).chmod(0)
    try:
        told = refused("cannot be read", *command, out, during=become)
    finally:
        (model / name).chmod(0o755)
    assert f"{model / name} cannot be read" in told
    assert not out.exists()
