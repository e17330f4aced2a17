"""NVIDIA's Model Optimizer: FP8 with one scale a tensor or row, and NVFP4.

NVFP4: `weight` uint8 `[out, in / 2]`, two 4-bit floats a byte, the low half first; `weight_scale` float8 for 16 of them,
`weight_scale_2` for all: weight = value * weight_scale * weight_scale_2. Reference: https://github.com/NVIDIA/TensorRT-Model-Optimizer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import Storage, Weight
from plait.checkpoint.quantised._codes import E2M1, misfit, need, nibbles
from plait.checkpoint.quantised.fp8 import FLOATS, scaled
from plait.lazy import Tensor, torch

METHODS = ("modelopt",)


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    specs = checkpoint.specs
    found = {}
    for scale in specs:
        if scale.endswith(".weight_scale"):
            name = scale.removesuffix("_scale")
            at = name.removesuffix(".weight")
            idle = [part for end in (".input_scale", ".output_scale") if (part := at + end) in specs]
            if need(specs, name).dtype in FLOATS:
                found[name] = scaled(checkpoint, name, scale, quantization.get("weight_block_size"), idle)
            else:
                found[name] = _four(checkpoint, name, idle)
    return found


def _four(checkpoint: Checkpoint, name: str, idle: list[str]) -> Weight:
    codes, scale, whole = (need(checkpoint.specs, name + end) for end in ("", "_scale", "_scale_2"))
    *stack, columns = codes.shape or (0,)
    fits = bool(stack) and columns % 8 == 0 and scale.shape == (*stack, columns // 8)
    if not fits or (codes.dtype, scale.dtype) != ("U8", "F8_E4M3") or whole.numel != 1:
        raise misfit(name, "uint8 [out, in / 2], float8 [out, in / 16], one number", f"{codes}, {scale}, {whole}")

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        values = torch.tensor(E2M1)[nibbles(storage.read(name, (start, stop)))]
        scales = storage.read(f"{name}_scale", (start, stop)).float() * storage.read(f"{name}_scale_2").float()
        return values * scales.repeat_interleave(16, -1)

    return Weight((*stack, 2 * columns), (name, f"{name}_scale", f"{name}_scale_2", *idle), rows)
