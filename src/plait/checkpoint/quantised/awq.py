"""AWQ: 4-bit codes, packed along the outputs in the order of its kernels, with scale and zero point for each group of inputs.

`qweight` int32 `[in, out / 8]`, `qzeros` int32 `[groups, out / 8]`, `scales` `[groups, out]`; output j of eight lies in nibble
0, 4, 1, 5, 2, 6, 3, 7. weight = scale * (code - zero). Reference: https://arxiv.org/abs/2306.00978
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import INSTEAD, Storage, Weight
from plait.checkpoint.quantised._codes import ceil, misfit, need, number, unpack
from plait.errors import ModelError
from plait.lazy import Tensor, torch

METHODS = ("awq",)
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    number(quantization, "bits" if "bits" in quantization else "w_bit", (4,))
    key = "group_size" if "group_size" in quantization else "q_group_size"
    size = number(quantization, key, range(-1, 1 << 20), 128)
    version = quantization.get("version", "gemm")
    if str(version).lower() not in ("gemm", "exllama"):
        raise ModelError("its version packs in another order", wanted="gemm", found=ascii(version)[:60], do=INSTEAD)
    if quantization.get("zero_point", True) is not True:
        raise ModelError(
            "it has no zero points",
            wanted='"zero_point": true',
            found=ascii(quantization["zero_point"])[:60],
            do=INSTEAD,
        )
    names = [name.removesuffix(".qweight") for name in checkpoint.specs if name.endswith(".qweight")]
    return {f"{name}.weight": _weight(checkpoint, name, size) for name in names}


def _ordered(words: Tensor) -> Tensor:
    """int32 `[n, words]` -> codes `[n, 8 words]`, in the order of the outputs."""
    return unpack(words, 4).reshape(len(words), -1, 8)[..., _NIBBLES].reshape(len(words), -1)


def _weight(checkpoint: Checkpoint, name: str, size: int) -> Weight:
    codes, zeros, scales = (need(checkpoint.specs, f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
    inside, packed = codes.shape if len(codes.shape) == 2 else (0, 0)
    groups, out = ceil(inside, size) if size > 0 else 1, packed * 8
    found = (codes.dtype, zeros.dtype, zeros.shape, scales.shape, scales.floating)
    if found != ("I32", "I32", (groups, packed), (groups, out), True):
        wanted = f"qweight [in, out / 8], qzeros [{groups}, out / 8], scales [{groups}, out]"
        raise misfit(name, wanted, f"{codes}, {zeros}, {scales}")

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        words, zero, scale = storage.hold(
            name, lambda: tuple(storage.read(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
        )
        group = torch.arange(inside) // (size if size > 0 else inside)
        low, high = start // 8, ceil(stop, 8)
        within = slice(start - 8 * low, stop - 8 * low)
        code, zero = _ordered(words[:, low:high])[:, within], _ordered(zero[:, low:high])[:, within]
        return (scale[group, start:stop].float() * (code - zero[group])).T

    held = codes.nbytes + zeros.nbytes + scales.nbytes
    return Weight((out, inside), tuple(f"{name}.{part}" for part in ("qweight", "qzeros", "scales")), rows, held)
