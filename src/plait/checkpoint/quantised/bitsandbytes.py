"""bitsandbytes: 4-bit codes (nf4, fp4) in blocks of the flattened weight, and 8-bit rows (LLM.int8).

- 4 bits: `weight` uint8, two codes a byte, the high half first; weight = quant_map[code] * absmax[block]. With double
  quantisation absmax is itself nested_quant_map[code] * nested_absmax[block] + offset. Sizes are JSON in
  `weight.quant_state.bitsandbytes__nf4`;
- 8 bits: `weight` int8, `SCB` float32 `[out]`; weight = code * SCB / 127.

References: https://arxiv.org/abs/2305.14314, https://arxiv.org/abs/2208.07339
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import Storage, Weight
from plait.checkpoint.quantised._codes import ceil, misfit, need, number
from plait.lazy import Tensor, torch

METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
_STATE = ".quant_state.bitsandbytes__"
_EIGHTH = 7.874015718698502e-3  # 1 / 127, as the library has it


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    found = {}
    for name in checkpoint.specs:
        if _STATE in name:
            weight = name.partition(_STATE)[0]
            found[weight] = _four(checkpoint, weight, name)
        elif name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            found[weight] = _eight(checkpoint, weight, name)
    return found


def _eight(checkpoint: Checkpoint, name: str, scale: str) -> Weight:
    codes = need(checkpoint.specs, name)
    if codes.dtype != "I8" or len(codes.shape) != 2 or checkpoint.specs[scale].numel != codes.shape[0]:
        raise misfit(name, "int8 [out, in] and SCB [out]", f"{codes}, {checkpoint.specs[scale]}")
    layout = f"{name}_format"

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        scales = storage.read(scale).float().reshape(-1, 1)[start:stop]
        return storage.read(name, (start, stop)).float() * scales * _EIGHTH

    return Weight(codes.shape, (name, scale, *((layout,) if layout in checkpoint.specs else ())), rows)


def _four(checkpoint: Checkpoint, name: str, state: str) -> Weight:
    specs = checkpoint.specs
    codes, absmax, table = (need(specs, f"{name}{end}") for end in ("", ".absmax", ".quant_map"))
    told = _told(checkpoint, state)
    shape, size = tuple(told["shape"]), number(told, "blocksize", range(2, 1 << 16))
    entries = math.prod(shape)
    if size % 2 or codes.dtype != "U8" or codes.numel != ceil(entries, 2) or table.numel != 16:
        raise misfit(name, f"4-bit codes of {list(shape)}, in even blocks", f"{codes}, blocks of {size}")
    if absmax.numel != ceil(entries, size):
        raise misfit(f"{name}.absmax", f"{ceil(entries, size)} blocks of {size}", str(absmax))
    double = absmax.dtype == "U8"
    inner = [f"{name}.nested_absmax", f"{name}.nested_quant_map"] if double else []
    nested = number(told, "nested_blocksize", range(1, 1 << 16)) if double else 0
    offset = told.get("nested_offset", 0.0)
    if not isinstance(offset, int | float):
        raise misfit(state, "nested_offset: a number", ascii(offset)[:60])
    if double and (need(specs, inner[0]).numel, need(specs, inner[1]).numel) != (ceil(absmax.numel, nested), 256):
        raise misfit(inner[0], f"blocks of {nested}, and 256 values", f"{specs[inner[0]]}, {specs[inner[1]]}")
    columns = shape[-1] if len(shape) > 1 else 1

    def held(storage: Storage) -> tuple[Tensor, Tensor]:
        scales = storage.read(f"{name}.absmax").reshape(-1)
        if double:
            wide, values = (storage.read(part).float().reshape(-1) for part in inner)
            scales = values[scales.int()] * wide.repeat_interleave(nested)[: len(scales)] + offset
        return scales.float(), storage.read(f"{name}.quant_map").float().reshape(-1)

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        scales, values = storage.hold(name, lambda: held(storage))
        first, last = start * columns, stop * columns
        low = first // 2
        count = codes.matrix[1]
        raw = storage.read(name, (low // count, ceil(ceil(last, 2), count))).reshape(-1)[low % count :]
        code = torch.stack([raw >> 4, raw & 15], -1).reshape(-1)[first - 2 * low :][: last - first].int()
        return (values[code] * scales[torch.arange(first, last) // size]).reshape(stop - start, columns)

    parts = (name, f"{name}.absmax", f"{name}.quant_map", state, *inner)
    return Weight(shape, parts, rows, 8 * absmax.numel)


def _told(checkpoint: Checkpoint, state: str) -> dict[str, Any]:
    """The JSON that a uint8 tensor spells."""
    spec = checkpoint.specs[state]
    if spec.dtype != "U8" or spec.numel > 4096:
        raise misfit(state, "JSON in bytes", str(spec))
    try:
        told = json.loads(bytes(checkpoint.read(state).reshape(-1).tolist()))
        shape = told["shape"]
        whole = isinstance(shape, list) and 0 < len(shape) < 8 and all(type(n) is int and 0 < n < 2**40 for n in shape)
    except (ValueError, RecursionError, TypeError, KeyError):
        whole = False
    if not whole:
        raise misfit(state, "JSON with shape and blocksize", "something else")
    return dict(told)
