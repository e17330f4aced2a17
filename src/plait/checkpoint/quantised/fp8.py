"""8-bit floats with a scale for each tensor, row, or block of 128 × 128 (DeepSeek's `weight_scale_inv`, fbgemm).

weight = code * scale. Blocks at the lower and right edges may be cut. Reference: DeepSeek-V3, https://arxiv.org/abs/2412.19437
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import Storage, Weight
from plait.checkpoint.quantised._codes import block_of, misfit, scale_rows
from plait.lazy import Tensor

METHODS = ("fp8", "fbgemm_fp8")
FLOATS = ("F8_E4M3", "F8_E5M2")
_IDLE = ("input_scale", "activation_scale", "input_scale_ub")  # for activations


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    specs = checkpoint.specs
    found = {}
    for name, spec in specs.items():
        if spec.dtype in FLOATS and not name.endswith("_scale"):
            scale = next((s for end in ("_scale_inv", "_scale") if (s := name + end) in specs), None)
            if scale is None:
                raise misfit(name, f"its scale, {name}_scale_inv or {name}_scale", "none")
            at = name.removesuffix(".weight")  # of packed experts: gate_up_proj_activation_scale
            idle = [n for end in _IDLE for mark in "._" if (n := f"{at}{mark}{end}") in specs]
            found[name] = scaled(checkpoint, name, scale, quantization.get("weight_block_size"), idle)
    return found


def scaled(checkpoint: Checkpoint, name: str, scale: str, sizes: object, idle: list[str]) -> Weight:
    """A weight that is its codes times a scale. `sizes`: rows and columns of a block, if the config names them."""
    shape = checkpoint.specs[name].shape
    if len(shape) < 2:
        raise misfit(name, "a matrix", str(list(shape)))
    block = block_of(name, shape, checkpoint.specs[scale], sizes)

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        codes = storage.read(name, (start, stop)).float()
        return codes * scale_rows(storage.read(scale), block, shape[-2], start, stop, shape[-1])

    return Weight(shape, (name, scale, *idle), rows)
