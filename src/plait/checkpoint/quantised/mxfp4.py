"""MXFP4, as gpt-oss stores its experts: blocks of 32 4-bit floats with one power of two each.

`X_blocks` `[experts, out, in / 32, 16]` holds two codes a byte, the low half first, `X_scales` `[experts, out, in / 32]`
exponents; weight = value * 2^(scale - 127), and X is `[experts, in, out]`. Reference: OCP Microscaling Formats 1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import Storage, Weight
from plait.checkpoint.quantised._codes import E2M1, misfit, need, nibbles, power
from plait.lazy import Tensor, torch

METHODS = ("mxfp4",)


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    found = {}
    for name, spec in checkpoint.specs.items():
        if name.endswith("_blocks"):
            own = name.removesuffix("_blocks")
            scales = need(checkpoint.specs, f"{own}_scales")
            shapes = spec.shape[-1:] == (16,) and len(spec.shape) >= 3 and scales.shape == spec.shape[:-1]
            if not shapes or spec.dtype != "U8" or scales.dtype not in ("U8", "F8_E8M0"):
                raise misfit(name, "bytes […, out, in / 32, 16] and scales […, out, in / 32]", f"{spec}, {scales}")
            found[own] = _weight(own, spec.shape)
    return found


def _weight(name: str, stored: tuple[int, ...]) -> Weight:
    *stack, out, blocks, _ = stored
    inside = 32 * blocks

    def expert(storage: Storage, number: int) -> tuple[Tensor, Tensor]:
        rows = (number * out * blocks, (number + 1) * out * blocks)
        codes = storage.read(f"{name}_blocks", rows).reshape(out, blocks * 16)
        scales = storage.read(f"{name}_scales", (number * out, (number + 1) * out))
        return codes, power(scales.reshape(out, blocks))

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            number, low = divmod(start, inside)
            high = min(inside, low + stop - start)
            held = storage.hold((name, number), lambda number=number: expert(storage, number))  # type: ignore[misc]
            codes, scales = held
            first = low // 2 * 2
            values = torch.tensor(E2M1)[nibbles(codes[:, first // 2 : (high + 1) // 2])][:, low - first : high - first]
            parts.append((values * scales[:, torch.arange(low, high) // 32]).T)
            start += high - low
        return torch.cat(parts)

    return Weight((*stack, inside, out), (f"{name}_blocks", f"{name}_scales"), rows, out * blocks * (16 + 4))
