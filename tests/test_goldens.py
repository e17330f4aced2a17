"""Bits hold still: the merged bytes of fixed inputs, for every method that works entry by entry or row by row.

When bits are meant to change, write them anew with `python tests/test_goldens.py` and say so under Numerics in the changelog.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry

FILE = Path(__file__).with_suffix(".json")
#: all but the methods that decompose whole matrices: LAPACK's last bits depend on the machine
HELD = [name for name, method in registry().items() if method.unit not in ("matrix", "tensor")]
GIVEN = {"weight": (0.5, 0.3, 0.4), "t": 0.3, "density": 0.6, "epsilon": 0.1}
SHAPES = {"matrix": (70, 1000), "vector": (501,)}


def exact(shape: tuple[int, ...], seed: int) -> Tensor:
    """Pseudo-random float32 in (-1, 1) by integer arithmetic alone, the same on every machine and PyTorch."""
    count = torch.Size(shape).numel()
    x = torch.arange(count, dtype=torch.int64) + seed * 1_000_003
    for factor in (2654435761, 2246822519, 3266489917):
        x = (x * factor) & 0xFFFFFFFF
        x = x ^ (x >> 15)
    return ((x >> 8).float() / 2**23 - 1).reshape(shape)


def merged(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    method = registry()[name]
    count = method.inputs[1] or 3
    base = exact(shape, 0)
    models = [(base + exact(shape, i + 1) * 0.1).to(dtype) for i in range(count)]
    found = {}
    for p in method.parameters:
        value = GIVEN.get(p.name, p.default)
        each = value if isinstance(value, tuple) else (value,) * count
        found[p.name] = each[:count] if p.per_model else value
    used = None if method.base == "ignored" else base.to(dtype)
    return merge_tensors(method, bind(method, found), models, used, name="model.layers.0.mlp.up_proj.weight")


def digests(name: str) -> dict[str, str]:
    """SHA-256 of the result for each shape and dtype."""
    return {
        f"{kind} {str(dtype).removeprefix('torch.')}": hashlib.sha256(
            merged(name, shape, dtype).reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for kind, shape in SHAPES.items()
        for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.parametrize("name", HELD)
def test_bits(name: str) -> None:
    """The method gives the bytes that it gave when its golden was written."""
    assert digests(name) == json.loads(FILE.read_text())[name]


def test_no_golden_without_a_method() -> None:
    """Each golden belongs to a method."""
    assert set(json.loads(FILE.read_text())) == set(HELD)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: digests(name) for name in HELD}, indent=1) + "\n")
