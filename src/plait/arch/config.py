"""The output's config.json, true to its layers and tensors: a pure function from configs to a config."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plait.arch.anatomy import Architecture, integers
from plait.arch.config_layers import Chosen, mend_layers, part_of
from plait.types import DTYPES, MERGEABLE, TensorSpec


@dataclass(frozen=True, slots=True)
class Mended:
    """The config to write, and sentences on what a person should look at."""

    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def mend(
    config: Mapping[str, Any],
    arch: Architecture,
    chosen: Chosen,
    tensors: Mapping[str, TensorSpec],
    *,
    tied: bool | None = None,
    drop_quantization: bool = False,
) -> Mended:
    """The output's config.json: `config` of the base model (whose anatomy is `arch`), mended where the output differs.

    `chosen`: module name -> for each output layer of its stack the config and the layer of its (first) source; modules that are
    absent are untouched. `tensors`: the output's. `tied`: whether head and embedding are one; None: told from their presence.
    `drop_quantization` leaves out `quantization_config`, for weights that were dequantised. Nothing given is changed.
    """
    if not config:  # a bare weight file stays one
        return Mended({})
    out = copy.deepcopy(dict(config))
    notes: list[str] = []
    for module in arch.modules:
        if module.name in chosen and module.stack:
            mend_layers(out, module, chosen[module.name], notes)
    _dtype(out, tensors)
    _vocabulary(out, arch, tensors, notes)
    _tie(out, arch, tensors, tied)
    if drop_quantization:
        for part in (out, *(value for value in out.values() if isinstance(value, dict))):
            if part.pop("quantization_config", None) is not None:
                notes.append("quantization_config is left out: the weights are not quantised any more")
    return Mended(out, tuple(notes))


def _dtype(out: dict[str, Any], tensors: Mapping[str, TensorSpec]) -> None:
    """`dtype` (transformers 5) and `torch_dtype` (4), whichever are there: that of most entries."""
    entries: Counter[str] = Counter()
    for spec in tensors.values():
        if spec.dtype in MERGEABLE:
            entries[spec.dtype] += spec.numel
    if not entries:
        return
    name = DTYPES[max(entries, key=lambda code: entries[code])].name
    keys = ("dtype", "torch_dtype")
    old = next((out[key] for key in keys if out.get(key)), None)
    for part in [out, *(value for value in out.values() if isinstance(value, dict))]:
        for key in keys:
            # a part with a dtype of its own (a float32 vision tower) keeps it
            if key in part and (part is out or (old is not None and part[key] == old)):
                part[key] = name
    if not any(key in out for key in keys):
        out["torch_dtype"] = name


def _vocabulary(out: dict[str, Any], arch: Architecture, tensors: Mapping[str, TensorSpec], notes: list[str]) -> None:
    name = arch.embedding
    if name is None or name not in tensors:
        return
    axis = arch.vocab_axis(name) or 0
    rows, old = tensors[name].shape[axis], arch.specs[name].shape[axis]
    paths = [(path, size) for path, size in integers(out) if path[-1] == "vocab_size"]
    for path, size in paths:
        if size == old or (rows != old and len(paths) == 1):
            part: Any = part_of(out, path[:-1])
            part["vocab_size"] = rows
    if rows != old and not any(path[-1] == "vocab_size" and size == rows for path, size in integers(out)):
        notes.append(f"config.json has no vocab_size that was {old}; the embedding now has {rows} rows")


def _tie(out: dict[str, Any], arch: Architecture, tensors: Mapping[str, TensorSpec], tied: bool | None) -> None:
    if arch.head is None or arch.embedding not in tensors:
        return
    if tied is None:
        present, was_present = arch.head in tensors, arch.head in arch.specs
        if present == was_present and present:
            return
        tied = not present
    key = "tie_word_embeddings"
    parts = [part for part in (out, *out.values()) if isinstance(part, dict) and key in part]
    if not parts and tied == (arch.head not in arch.specs):
        return  # the class's default held before, and nothing changed
    for part in parts or [out]:
        part[key] = tied
