"""Makes bitsandbytes.safetensors: codes that bitsandbytes 0.50.2 wrote, and the weights that it reads from them.

pip install bitsandbytes && python tests/checkpoint/data/make_bitsandbytes.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.functional import (
    dequantize_4bit,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    quantize_4bit,
)
from safetensors.torch import save_file

made = {}
generator = torch.Generator().manual_seed(0)
for name, kind, nested, size, shape in (
    ("nf4", "nf4", False, 64, (24, 64)),
    ("nf4_double", "nf4", True, 64, (33, 150)),
    ("fp4", "fp4", False, 64, (10, 37)),
    ("fp4_double", "fp4", True, 128, (7, 6, 5)),
):
    x = torch.randn(shape, generator=generator)
    codes, state = quantize_4bit(x, quant_type=kind, compress_statistics=nested, blocksize=size)
    made[f"{name}.weight"] = codes
    made |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    made[f"exact.{name}.weight"] = dequantize_4bit(codes, state)
codes, scales, _ = int8_vectorwise_quant(torch.randn(9, 14, generator=generator).half())
made |= {"int8.weight": codes, "int8.SCB": scales, "int8.weight_format": torch.tensor(0, dtype=torch.uint8)}
made["exact.int8.weight"] = int8_vectorwise_dequant(codes, scales)
save_file({name: x.contiguous() for name, x in made.items()}, Path(__file__).with_name("bitsandbytes.safetensors"))
