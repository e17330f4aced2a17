"""Random numbers that come from a place, not from an order: the same entry of the same tensor always draws the same number."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

from plait import kernels
from plait.lazy import Tensor, torch

_RUN, _LARGE = 1 << 16, 1 << 22  # words drawn at once: small enough for a core's cache; enough to fill a GPU
_APART = 16  # entries between the two that share a word


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


@cache
def _numbers(device: torch.device) -> Tensor:
    """0, 1, …, as many as words are drawn at once."""
    return torch.arange(_RUN if device.type == "cpu" else _LARGE, dtype=torch.int32, device=device)


def _shift(x: Tensor, bits: int, out: Tensor) -> Tensor:
    """Logical right shift of int32, into `out`."""
    return torch.bitwise_right_shift(x, bits, out=out).bitwise_and_((1 << (32 - bits)) - 1)


def _scramble(x: Tensor, spare: Tensor) -> None:
    """The 32-bit mixer `lowbias32` (xorshift and multiply, bias 0.11), in place on int32."""
    x ^= _shift(x, 16, spare)
    x *= _signed(0x21F0AAAD)
    x ^= _shift(x, 15, spare)
    x *= _signed(0xD35A2D97)
    x ^= _shift(x, 15, spare)


@lru_cache(1024)
def keys(seed: int, tensor: str, model: int, high: int) -> tuple[int, int]:
    """The two keys of the numbers whose upper half is `high`."""
    key = hashlib.blake2b(f"{seed}\0{tensor}\0{model}\0{high}".encode(), digest_size=8).digest()
    return int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")


def uniform(seed: int, tensor: str, model: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` numbers in [0, 1) for the entries start, start + 1, … of a tensor; float32 `[count]`, multiples of 2^-24.

    With number = high * 2^32 + low, the first 8 bytes of BLAKE2b(f"{seed}\\0{tensor}\\0{model}\\0{high}") are two little-endian
    uint32 keys. Two entries that are 16 apart share a word, the w-th with w = low // 32 * 16 + low % 16. A round adds a key, then
    mixes: x ^= x >> 16, x *= 0x21F0AAAD, x ^= x >> 15, x *= 0xD35A2D97, x ^= x >> 15, all modulo 2^32. Two rounds over w, the
    first key first, make the word. The first entry's number is its upper 24 bits, the second's those of the word with its
    halves exchanged: 16 bits of each number are its own.

    Reference: C. Wellons, Prospecting for hash functions, https://nullprogram.com/blog/2018/07/31/
    """
    out = torch.empty(count, dtype=torch.float32, device=device)
    at = 0
    while kernels.suit(out) and at < count:
        high, low = divmod(start + at, 1 << 32)
        run = min(count - at, (1 << 32) - low)
        kernels.uniform(*keys(seed, tensor, model, high), low, out[at : at + run])
        at += run
    numbers = _numbers(out.device)
    while at < count:
        high, low = divmod(start + at, 1 << 32)
        before = low % (2 * _APART)
        run = min(count - at, (1 << 32) - low, 2 * len(numbers) - before)
        key1, key2 = keys(seed, tensor, model, high)
        words = numbers[: -(-(before + run) // (2 * _APART)) * _APART] + _signed((low - before) // 2 + key1)
        spare = torch.empty_like(words)
        _scramble(words, spare)
        words += _signed(key2)
        _scramble(words, spare)
        exchanged = (words << 16).bitwise_or_(_shift(words, 16, spare))
        x = torch.stack((words.view(-1, _APART), exchanged.view(-1, _APART)), 1).view(-1)[before : before + run]
        torch.mul(_shift(x, 8, torch.empty_like(x)), 2.0**-24, out=out[at : at + run])
        at += run
    return out


def normal(seed: int, tensor: str, model: int, start: int, count: int) -> Tensor:
    """`count` numbers of the standard normal distribution for the entries start, start + 1, …; float32 `[count]`, within 5.5.

    The quantiles at `uniform` + 2^-25, computed in float64.
    """
    quantiles: Tensor = torch.special.ndtri(uniform(seed, tensor, model, start, count).double() + 2.0**-25)
    return quantiles.float()
