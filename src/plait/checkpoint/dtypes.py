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
            f"tensors in {code} cannot be read",
            wanted="a dtype of whole bytes that PyTorch has",
            found=f"{known.name}, with PyTorch {torch.__version__}",
            do="use the model that this one was quantised from" if known.bits < 8 else "install a newer PyTorch",
        )
    dtype: torch.dtype = getattr(torch, known.name)
    return dtype


def code_of(dtype: torch.dtype, tensor: str = "") -> str:
    """The safetensors code of a torch dtype; `ModelError` for quantised and other exotic ones, with the tensor's name."""
    name = str(dtype).removeprefix("torch.")
    if name not in CODES:
        raise ModelError(
            f"tensors of {dtype} cannot be read",
            wanted="a dtype such as bfloat16",
            found=tensor or str(dtype),
            do="save the tensors again in such a dtype",
        )
    return CODES[name]


def spec_of(tensor: torch.Tensor, name: str = "") -> TensorSpec:
    return TensorSpec(code_of(tensor.dtype, name), tuple(tensor.shape))
