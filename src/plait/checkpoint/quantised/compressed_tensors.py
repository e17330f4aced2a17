"""compressed-tensors (llm-compressor, vLLM): 8-bit codes beside their scales, and packed 4-bit ones.

- `weight` float8 or int8: weight = (code - zero) * `weight_scale`;
- `weight_packed` int32 (pack-quantized): the same with code - 2^(bits - 1), lowest bits first, scales for groups of inputs;
- `weight_packed` uint8: 4-bit floats, with a float8 scale for 16 and one divisor for all (NVFP4), or a power of two for 32.

Reference: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import INSTEAD, Storage, Weight
from plait.checkpoint.quantised._codes import (
    E2M1,
    block_of,
    ceil,
    misfit,
    need,
    nibbles,
    number,
    power,
    scale_rows,
    unpack,
)
from plait.errors import ModelError
from plait.lazy import Tensor, torch
from plait.types import TensorSpec

METHODS = ("compressed-tensors",)
_FORMATS = (
    *("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "dense"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
)
#: of activations: they have no part in the weights
_IDLE = ("input_scale", "input_zero_point", "input_global_scale", "input_g_idx", "output_scale", "output_zero_point")


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    if (kind := quantization.get("format", "mixed-precision")) not in _FORMATS:
        raise ModelError("its format is another", wanted=", ".join(_FORMATS), found=ascii(kind)[:60], do=INSTEAD)
    if sparse := quantization.get("sparsity_config") or quantization.get("transform_config"):
        raise ModelError(
            "it is sparse, or its weights are rotated", wanted="quantised weights", found=ascii(sparse)[:60], do=INSTEAD
        )
    specs = checkpoint.specs
    found = {}
    for scale in specs:
        if scale.endswith(".weight_scale"):
            name = scale.removesuffix(".weight_scale")
            idle = tuple(n for end in _IDLE if (n := f"{name}.{end}") in specs)
            if f"{name}.weight_packed" in specs:
                made = _four if specs[f"{name}.weight_packed"].dtype == "U8" else _packed
                found[f"{name}.weight"] = made(quantization, checkpoint, name, idle)
            else:
                found[f"{name}.weight"] = _plain(quantization, checkpoint, name, idle)
    return found


def _parts(specs: Mapping[str, TensorSpec], name: str, *ends: str) -> Iterator[str]:
    return (f"{name}.{end}" for end in ends if f"{name}.{end}" in specs)


def _groups(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = quantization.get("config_groups")
    made = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    return [each for each in made if isinstance(each, dict)]


def _plain(quantization: Mapping[str, Any], checkpoint: Checkpoint, name: str, idle: tuple[str, ...]) -> Weight:
    """One code an entry."""
    specs, weight, scale = checkpoint.specs, f"{name}.weight", f"{name}.weight_scale"
    codes = need(specs, weight)
    if codes.dtype not in ("I8", "F8_E4M3", "F8_E5M2") or len(codes.shape) < 2:
        raise misfit(weight, "a matrix of int8 or float8", str(codes))
    blocks = [g["block_structure"] for g in _groups(quantization) if g.get("block_structure")]
    block = None
    for sizes in (*blocks, None):
        try:
            block = block_of(weight, codes.shape, specs[scale], sizes)
            break
        except ModelError:
            if sizes is None:
                block = _grouped(weight, codes.shape, specs[scale])
    assert block
    zero = next(_parts(specs, name, "weight_zero_point"), None)
    if zero and specs[zero].shape != specs[scale].shape:
        raise misfit(zero, str(specs[scale]), str(specs[zero]))
    shape = codes.shape

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        made = storage.read(weight, (start, stop)).float()
        if zero:
            made -= scale_rows(storage.read(zero), block, shape[-2], start, stop, shape[-1])
        return made * scale_rows(storage.read(scale), block, shape[-2], start, stop, shape[-1])

    return Weight(shape, (weight, scale, *((zero,) if zero else ()), *idle), rows)


def _grouped(name: str, shape: tuple[int, ...], scale: TensorSpec) -> tuple[int, int]:
    """One scale for a group of columns of one row, all groups as wide."""
    rows, columns = shape[-2:]
    if len(scale.shape) != 2 or scale.shape[0] != rows or not scale.shape[1] or columns % scale.shape[1]:
        raise misfit(name, f"scales for groups of the columns of {list(shape)}", str(list(scale.shape)))
    return 1, columns // scale.shape[1]


def _packed(quantization: Mapping[str, Any], checkpoint: Checkpoint, name: str, idle: tuple[str, ...]) -> Weight:
    """Codes packed in int32 along the inputs."""
    specs, read = checkpoint.specs, checkpoint.read
    packed, scale, size = f"{name}.weight_packed", f"{name}.weight_scale", f"{name}.weight_shape"
    if need(specs, packed).dtype != "I32" or len(specs[packed].shape) != 2 or need(specs, size).shape != (2,):
        raise misfit(packed, "int32 [out, in * bits / 32] and weight_shape", str(specs[packed]))
    out, inside = (int(n) for n in read(size))
    widths = [number(group, "num_bits", (2, 4, 8)) for group in _groups(quantization)]
    bits = next((n for n in widths if specs[packed].shape == (out, ceil(inside * n, 32))), None)
    if bits is None or inside < 1:
        raise misfit(packed, f"codes of 2, 4 or 8 bits for [{out}, {inside}]", str(specs[packed]))
    half = 1 << (bits - 1)
    order, zero = (next(_parts(specs, name, end), None) for end in ("weight_g_idx", "weight_zero_point"))
    groups = specs[scale].shape[-1] if len(specs[scale].shape) == 2 else 1
    wide = ceil(inside, max(1, groups))
    if specs[scale].shape not in ((out, groups), (out,), (1,)) or ceil(inside, wide) != groups:
        raise misfit(scale, f"[{out}, groups]", str(specs[scale]))
    if order and specs[order].shape != (inside,):
        raise misfit(order, f"[{inside}]", str(specs[order]))
    shifted = zero is not None and specs[zero].dtype == "I32"
    if zero and specs[zero].shape not in (
        (ceil(out * bits, 32), groups) if shifted else specs[scale].shape,
        specs[scale].shape,
    ):
        raise misfit(zero, f"[{out} * {bits} / 32, {groups}]", str(specs[zero]))

    def held(storage: Storage) -> tuple[Tensor, Tensor, Tensor | None]:
        group = storage.read(order).long() if order else torch.arange(inside) // wide
        if not 0 <= int(group.min()) <= int(group.max()) < groups:
            raise misfit(str(order), f"groups from 0 to {groups - 1}", f"{int(group.min())} to {int(group.max())}")
        zeros = storage.read(zero) if zero else None
        if zeros is not None and shifted:
            zeros = unpack(zeros.T, bits).T[:out] - half
        return group, storage.read(scale).float().reshape(-1, groups), zeros

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        group, scales, zeros = storage.hold(name, lambda: held(storage))
        codes = unpack(storage.read(packed, (start, stop)), bits)[:, :inside] - half
        if zeros is not None:
            codes = codes - zeros.reshape(-1, groups)[start:stop][:, group].int()
        return codes * (scales if len(scales) == 1 else scales[start:stop])[:, group]

    parts = [packed, scale, size, *(part for part in (order, zero) if part)]
    return Weight((out, inside), (*parts, *idle), rows, 8 * inside + 8 * out * groups)


def _four(quantization: Mapping[str, Any], checkpoint: Checkpoint, name: str, idle: tuple[str, ...]) -> Weight:
    """4-bit floats, two a byte."""
    specs = checkpoint.specs
    packed, scale, divisor = f"{name}.weight_packed", f"{name}.weight_scale", f"{name}.weight_global_scale"
    *stack, columns = specs[packed].shape
    size = 16 if divisor in specs else 32
    if not stack or specs[scale].shape != (*stack, 2 * columns // size) or 2 * columns % size:
        raise misfit(packed, f"scales for groups of {size}", f"{specs[packed]}, {specs[scale]}")
    if divisor in specs and specs[divisor].numel != 1:
        raise misfit(divisor, "one number", str(specs[divisor]))

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        values = torch.tensor(E2M1)[nibbles(storage.read(packed, (start, stop)))]
        scales = storage.read(scale, (start, stop))
        wide = scales.float() / storage.read(divisor).float() if divisor in specs else power(scales)
        return values * wide.repeat_interleave(size, -1)

    return Weight((*stack, 2 * columns), (packed, scale, *_parts(specs, name, "weight_global_scale"), *idle), rows)
