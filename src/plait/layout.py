"""Where each output tensor will lie: shards, headers and byte offsets, decided before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.types import DTYPES, TensorSpec

SHARD_SIZE = 5_000_000_000  # bytes


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its name, its header's bytes, and for each tensor the offset of its first byte in the file."""

    filename: str
    header: bytes = field(repr=False)
    offsets: Mapping[str, int] = field(repr=False)
    nbytes: int  # of the whole file


def layout(specs: Mapping[str, TensorSpec], shard_size: int = SHARD_SIZE, stem: str = "model") -> tuple[Shard, ...]:
    """Fill shards with the tensors in their order; a shard is closed before its tensors would exceed `shard_size` bytes.

    A tensor larger than that has a shard of its own. One shard is `model.safetensors`, several are numbered; with another
    `stem` that stands for `model`.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if groups[-1] and filled + spec.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += spec.nbytes
    count = len(groups)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    return tuple(_shard(name, {n: specs[n] for n in group}) for name, group in zip(names, groups, strict=True))


def _shard(filename: str, specs: Mapping[str, TensorSpec]) -> Shard:
    # wide dtypes first, so that every tensor starts at a multiple of its entries' size
    ordered = sorted(specs, key=lambda name: -DTYPES[specs[name].dtype].bits)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, begins = 0, {}
    for name in ordered:
        spec = specs[name]
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        begins[name] = at
        at += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + begin for name, begin in begins.items()}
    return Shard(filename, header, offsets, len(header) + at)


def index_name(shards: tuple[Shard, ...]) -> str:
    """What the index of these shards is called."""
    return re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", shards[0].filename) + ".safetensors.index.json"


def index_json(specs: Mapping[str, TensorSpec], shards: tuple[Shard, ...]) -> str:
    """The text of `model.safetensors.index.json`."""
    sizes = {
        "total_size": sum(s.nbytes for s in specs.values()),
        "total_parameters": sum(s.numel for s in specs.values()),
    }
    where = {name: shard.filename for shard in shards for name in shard.offsets}
    return (
        json.dumps({"metadata": sizes, "weight_map": {n: where[n] for n in specs}}, indent=2, ensure_ascii=False) + "\n"
    )
