"""Model folders whose weight files take no disk: a header, and a hole that reads as zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARD = 5 * 10**9  # bytes


def sparse(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None, shard: int = SHARD
) -> Path:
    """A model folder of bfloat16 zeros with these tensors, in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if groups[-1] and filled + nbytes > shard:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += nbytes
    where = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        where |= dict.fromkeys(group, file)
        _write(folder / file, group)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "none", "dtype": "bfloat16"}))
    return folder


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
