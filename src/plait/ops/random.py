"""Random numbers that come from a place, not from an order: the same entry of the same tensor always draws the same number."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 32) if value >> 31 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int32."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mix(x: Tensor, key: int) -> Tensor:
    """One keyed round of the 32-bit mixer `lowbias32` (xorshift and multiply, bias 0.11), in place on int32."""
    x += _signed(key)
    x ^= _shift(x, 16)
    x *= _signed(0x21F0AAAD)
    x ^= _shift(x, 15)
    x *= _signed(0xD35A2D97)
    x ^= _shift(x, 15)
    return x


def uniform(seed: int, tensor: str, model: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` numbers in [0, 1) for the entries start, start + 1, … of a tensor; float32 `[count]`, multiples of 2^-24.

    Two rounds of a 32-bit mixer over the entry's number; their keys are a BLAKE2 hash of seed, tensor name, model number and
    the upper half of the entry's number.

    Reference: C. Wellons, Prospecting for hash functions, https://nullprogram.com/blog/2018/07/31/
    """
    out = torch.empty(count, dtype=torch.float32, device=device)
    at = 0
    while at < count:
        high, low = divmod(start + at, 1 << 32)
        run = min(count - at, (1 << 32) - low)
        text = f"{seed}\0{tensor}\0{model}\0{high}".encode()
        keys = hashlib.blake2b(text, digest_size=8).digest()
        x = torch.arange(low, low + run, dtype=torch.int64, device=device).to(torch.int32)
        x = _mix(_mix(x, int.from_bytes(keys[:4], "little")), int.from_bytes(keys[4:], "little"))
        out[at : at + run] = _shift(x, 8).float().mul_(2.0**-24)
        at += run
    return out
