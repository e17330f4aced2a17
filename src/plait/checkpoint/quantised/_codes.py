"""What the formats share: codes in packed bits, tables of small floats, scales for blocks."""

from __future__ import annotations

from collections.abc import Mapping

from plait.checkpoint.quantised import INSTEAD
from plait.errors import ModelError
from plait.lazy import Tensor, torch
from plait.types import TensorSpec

#: the values of 4-bit floats (1 sign, 2 exponent, 1 mantissa bits) by their codes
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Codes of so many bits out of int32 words that hold them one after the other, lowest bits first, along the last axis.

    `[…, words]` -> int32 `[…, words * 32 // bits]`; codes may lie across two words, as 3-bit codes do.
    """
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return _joined((words[..., None] >> shifts) & (2**bits - 1))
    words = words.long() & 0xFFFFFFFF
    words = words.reshape(*words.shape[:-1], -1, bits)
    wide = words[..., :-1] | words[..., 1:] << 32
    at = torch.arange(32) * bits
    first = (at // 32).clamp_max(bits - 2)
    return _joined((wide[..., first] >> (at - 32 * first)) & (2**bits - 1))


def nibbles(codes: Tensor) -> Tensor:
    """4-bit codes of bytes, the low half first: uint8 `[…, n]` -> int32 `[…, 2 n]`."""
    return _joined(torch.stack([codes & 15, codes >> 4], -1))


def _joined(codes: Tensor) -> Tensor:
    return codes.reshape(*codes.shape[:-2], -1).int()


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def power(codes: Tensor) -> Tensor:
    """Scales that are stored as exponents: uint8 or float8_e8m0 -> float32 2^(code - 127)."""
    exponents = codes.view(torch.uint8).int() - 127
    return torch.ldexp(torch.ones(exponents.shape), exponents)


def scale_rows(scale: Tensor, block: tuple[int, int], rows: int, start: int, stop: int, columns: int) -> Tensor:
    """The scales of rows [start, stop), float32: `[stop - start, columns]`, one a row, or one for all.

    `scale` is a matrix, or a stack of them for a stack of matrices of `rows` rows; one entry is for a `block`.
    """
    if scale.numel() == 1:
        return scale.reshape(1, 1).float()
    scale = scale[:, None] if scale.ndim == 1 else scale
    high = ceil(rows, block[0])
    row = torch.arange(start, stop)
    picked = scale.reshape(-1, scale.shape[-1])[row // rows * high + row % rows // block[0]]
    picked = power(picked) if str(picked.dtype) in ("torch.uint8", "torch.float8_e8m0fnu") else picked.float()
    return picked if picked.shape[-1] == 1 else picked.repeat_interleave(block[1], -1)[:, :columns]


def block_of(name: str, shape: tuple[int, ...], scale: TensorSpec, sizes: object) -> tuple[int, int]:
    """Rows and columns that one scale is for; `sizes` is what the config says of it. `ModelError` if nothing fits."""
    rows, columns = shape[-2:]
    stack = scale.shape[:-2] if len(scale.shape) == len(shape) else ()
    if scale.numel == 1:
        return rows, columns
    if len(scale.shape) == 1 and len(shape) == 2 and scale.shape[0] == rows:
        return 1, columns
    if stack == shape[:-2] and len(scale.shape) == len(shape):
        grid = scale.shape[-2:]
        for block in ((rows, columns), (1, columns)):
            if grid == (ceil(rows, block[0]), 1):
                return block
        known = (128, 128) if sizes is None else sizes
        if isinstance(known, list | tuple) and len(known) == 2 and all(type(n) is int and n > 0 for n in known):
            high, wide = known
            if grid == (ceil(rows, high), ceil(columns, wide)):
                return high, wide
    raise misfit(name, f"scales for blocks of {sizes or [128, 128]} of {list(shape)}", str(list(scale.shape)))


def need(specs: Mapping[str, TensorSpec], name: str) -> TensorSpec:
    """The spec of a tensor that must be there."""
    if name not in specs:
        raise misfit(name, "a tensor of this name", "none")
    return specs[name]


def misfit(name: str, wanted: str, found: str) -> ModelError:
    return ModelError(f"{name} does not fit", wanted=wanted, found=found, do="download it again, or " + INSTEAD)


def number(
    quantization: Mapping[str, object], key: str, known: tuple[int, ...] | range, default: int | None = None
) -> int:
    """A whole number of a quantization_config, one of those that are known."""
    value = quantization.get(key, default)
    if type(value) is not int or value not in known:
        among = ", ".join(map(str, known)) if isinstance(known, tuple) else f"{known.start} to {known.stop - 1}"
        raise ModelError(f"{key} cannot be that", wanted=among, found=ascii(value)[:60], do=INSTEAD)
    return value
