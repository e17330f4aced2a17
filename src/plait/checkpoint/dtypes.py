"""safetensors dtype codes and torch dtypes, both ways."""

from __future__ import annotations

from plait.errors import ModelError
from plait.lazy import torch
from plait.types import CODES, DTYPES, TensorSpec


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code; `ModelError` when this torch has none."""
    known = DTYPES[code]
    if known.bits < 8 or not hasattr(torch, known.name):
        raise ModelError(
            f"this PyTorch has no dtype for {code} tensors",
            wanted=f"torch.{known.name}",
            found=f"PyTorch {torch.__version__}",
            do="install a newer PyTorch",
        )
    dtype: torch.dtype = getattr(torch, known.name)
    return dtype


def code_of(dtype: torch.dtype) -> str:
    """The safetensors code of a torch dtype; `ModelError` for quantised and other exotic ones."""
    name = str(dtype).removeprefix("torch.")
    if name not in CODES:
        raise ModelError(
            f"tensors of {dtype} cannot be read",
            wanted="a dtype such as bfloat16",
            found=str(dtype),
            do="save the tensors again in such a dtype",
        )
    return CODES[name]


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(code_of(tensor.dtype), tuple(tensor.shape))
