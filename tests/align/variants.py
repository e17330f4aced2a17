"""Tiny checkpoints of real classes, and the same under other names."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arch.zoo import pen, save

__all__ = ["pen"]

Rename = Callable[[str], str | None]


@pytest.fixture
def other(pen: Path, tmp_path: Path) -> Callable[..., Path]:
    """other(NAME, FOLDER, rename, **config): the model of that name with other weights, under other names (None: without it)."""

    def make(name: str, folder: str, rename: Rename = str, seed: int = 1, **config: Any) -> Path:
        source, out = save(name, pen), tmp_path / folder
        shutil.copytree(source, out)
        made = {
            new: x + 0.01 * noise(x.shape, seed, old) if x.is_floating_point() else x
            for old, x in load_file(source / "model.safetensors").items()
            if (new := rename(old)) is not None
        }
        save_file(made, out / "model.safetensors", {"format": "pt"})
        settings = json.loads((out / "config.json").read_text()) | config
        (out / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
        return out

    return make


def noise(shape: torch.Size, seed: int, name: str) -> torch.Tensor:
    """Numbers that depend on the seed and the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))


def sub(*pairs: tuple[str, str]) -> Rename:
    """A renaming by regular expressions, the first that fits."""

    def rename(name: str) -> str:
        for pattern, new in pairs:
            renamed, hits = re.subn(pattern, new, name, count=1)
            if hits:
                return renamed
        return name

    return rename
