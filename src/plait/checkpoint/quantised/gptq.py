"""GPTQ: codes of 2, 3, 4 or 8 bits, packed along the inputs, with a scale and a zero point for each group of inputs.

`qweight` int32 `[in * bits / 32, out]`, `qzeros` int32 `[groups, out * bits / 32]`, `scales` `[groups, out]`, `g_idx` `[in]`
(the group of each input, for `desc_act`). weight = scale * (code - zero). The older format stores zero - 1, modulo 2^bits;
`"checkpoint_format": "gptq_v2"` stores zero. Reference: https://arxiv.org/abs/2210.17323
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.quantised import INSTEAD, Storage, Weight
from plait.checkpoint.quantised._codes import ceil, misfit, need, number, unpack
from plait.errors import ModelError
from plait.lazy import Tensor, torch

METHODS = ("gptq",)


def weights(quantization: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Weight]:
    stored = quantization.get("checkpoint_format") or "gptq"
    if stored not in ("gptq", "gptq_v2"):
        raise ModelError("checkpoint_format is another", wanted="gptq, gptq_v2", found=ascii(stored)[:60], do=INSTEAD)
    bits = number(quantization, "bits", (2, 3, 4, 8))
    size = number(quantization, "group_size", range(-1, 1 << 20), 128)
    names = [name.removesuffix(".qweight") for name in checkpoint.specs if name.endswith(".qweight")]
    return {f"{name}.weight": _weight(checkpoint, name, bits, size, stored == "gptq") for name in names}


def _weight(checkpoint: Checkpoint, name: str, bits: int, size: int, older: bool) -> Weight:
    specs = checkpoint.specs
    codes, zeros, scales = (need(specs, f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
    order = f"{name}.g_idx" if f"{name}.g_idx" in specs else None
    packed, out = codes.shape if len(codes.shape) == 2 else (0, 0)
    inside = packed * 32 // bits
    groups = ceil(inside, size) if size > 0 else 1
    if (
        (codes.dtype, zeros.dtype) != ("I32", "I32")
        or not scales.floating
        or scales.shape != (groups, out)
        or zeros.shape != (groups, out * bits // 32)
        or (order and specs[order].shape != (inside,))
    ):
        wanted = f"qweight [in * {bits} / 32, out], qzeros [{groups}, out * {bits} / 32], scales [{groups}, out]"
        raise misfit(name, wanted, f"{codes}, {zeros}, {scales}")

    def held(storage: Storage) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        zero = unpack(storage.read(f"{name}.qzeros"), bits)
        zero = (zero + 1) & (2**bits - 1) if older else zero
        group = storage.read(order).long() if order else torch.arange(inside) // (size if size > 0 else inside)
        if group.numel() and not 0 <= int(group.min()) <= int(group.max()) < groups:
            raise misfit(f"{name}.g_idx", f"groups from 0 to {groups - 1}", f"{int(group.min())} to {int(group.max())}")
        return storage.read(f"{name}.qweight"), zero, storage.read(f"{name}.scales").float(), group

    def rows(storage: Storage, start: int, stop: int) -> Tensor:
        words, zero, scale, group = storage.hold(name, lambda: held(storage))
        code = unpack(words[:, start:stop].T, bits)
        return scale[group, start:stop].T * (code - zero[group, start:stop].T)

    parts = ("qweight", "qzeros", "scales", *(("g_idx",) if order else ()))
    return Weight((out, inside), tuple(f"{name}.{part}" for part in parts), rows, codes.nbytes + 8 * groups * out)
