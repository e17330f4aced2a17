"""safetensors dtype codes and torch dtypes, both ways."""

from __future__ import annotations

import torch

from plait.errors import ModelError
from plait.types import CODES, DTYPES, TensorSpec

_TORCH = {
    code: getattr(torch, dtype.name) for code, dtype in DTYPES.items() if hasattr(torch, dtype.name) and dtype.bits >= 8
}


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code; `ModelError` when this torch has none."""
    if code not in _TORCH:
        raise ModelError(
            f"this PyTorch has no dtype for {code} tensors",
            wanted=f"torch.{DTYPES[code].name}",
            found=f"PyTorch {torch.__version__}",
            do="install a newer PyTorch",
        )
    dtype: torch.dtype = _TORCH[code]
    return dtype


def code_of(dtype: torch.dtype) -> str:
    """The safetensors code of a torch dtype; `ModelError` for quantised and other exotic ones."""
    name = str(dtype).removeprefix("torch.")
    if name not in CODES:
        raise ModelError(f"tensors of {dtype} cannot be read", wanted="a dtype such as bfloat16", found=str(dtype))
    return CODES[name]


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(code_of(tensor.dtype), tuple(tensor.shape))
