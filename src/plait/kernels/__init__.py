"""The innermost loops in C (`kernels.c`), for float32 tensors on the CPU; each does what the PyTorch code beside its call does.

They are compiled when the package is installed. Where there is no compiler, or PLAIT_KERNELS is `off`, `suit` says no and the
PyTorch code runs: the same bits, more slowly.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from plait.lazy import Tensor, torch

#: safetensors code -> number in the kernels, bytes
DTYPES = {"F32": (0, 4), "BF16": (1, 2), "F16": (2, 2)}
_DTYPES = {"torch.float32": 0, "torch.bfloat16": 1, "torch.float16": 2}
_P, _INT, _LONG, _U32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint32
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double
_SIGNATURES: dict[str, tuple[object, ...]] = {
    "widen": (None, _P, _INT, _P, _P, _LONG),
    "narrow": (_INT, _P, _P, _P, _INT, _LONG),
    "weighted_sum": (None, _P, _P, _INT, _P, _LONG),
    "elected_sum": (None, _P, _P, _INT, _INT, _FLOAT, _P, _LONG),
    "gram": (None, _P, _INT, _LONG, _P),
    "l1": (_DOUBLE, _P, _LONG),
    "uniform": (None, _U32, _U32, _U32, _P, _LONG),
    "high": (None, _P, _LONG, _P),
    "low": (None, _P, _LONG, _U32, _P),
    "count": (_LONG, _P, _LONG, _FLOAT),
    "keep": (None, _P, _LONG, _LONG, _FLOAT, _P),
    "drop": (None, _P, _P, _LONG, _FLOAT, _P),
    # of ahead.c
    "cached": (_INT, _INT, _LONG),
    "ahead": (None, _INT, _LONG, _LONG),
    # of fused.c
    "merge": (_INT, _P, _INT, _P, _INT, _FLOAT, _INT, _P, _INT, _LONG),
    "sums": (_INT, _P, _INT, _LONG, _LONG, _P),
    "select": (_INT, _P, _P, _INT, _LONG),
    "magnitudes": (_INT, _P, _INT, _LONG, _P, _LONG),
    "count_bins": (None, _P, _LONG, _INT, _P),
    "largest": (_U32, _P, _LONG, _LONG, _P, _P),
    "locate": (_LONG, _P, _LONG, _LONG, _P),
    "parts": (None, _P, _LONG, _LONG, _U32, _P),
    "ranked": (_INT, _P, _LONG, _LONG, _DOUBLE, _DOUBLE, _U32, _U32, _U32, _P, _P),
    "finite": (_INT, _P, _INT, _LONG),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, None when there are none."""
    if os.environ.get("PLAIT_KERNELS", "").lower() in ("off", "0", "no"):
        return None
    return loaded(Path(__file__).with_name("_kernels.so"))


def loaded(path: Path) -> ctypes.CDLL | None:
    """The kernels that were compiled to a file; None where there are none that this machine and this version can call."""
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(found, f"plait_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not there, of another machine, or of an older source
        return None
    return found


def suit(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: float32, on the CPU, contiguous."""
    return library() is not None and all(
        t.dtype is torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors
    )


def narrows(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether `narrow` can round `x` to `dtype`."""
    return str(dtype) in _DTYPES and suit(x)


def widens(x: Tensor) -> bool:
    """Whether `widen` can read `x`."""
    return library() is not None and str(x.dtype) in _DTYPES and x.device.type == "cpu" and x.is_contiguous()


def widen(x: Tensor, base: Tensor | None = None) -> Tensor:
    """x, or x - base, in float32."""
    out = torch.empty(x.shape, dtype=torch.float32)
    call(
        "widen",
        x.data_ptr(),
        _DTYPES[str(x.dtype)],
        base.data_ptr() if base is not None else None,
        out.data_ptr(),
        x.numel(),
    )
    return out


def narrow(x: Tensor, base: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """x, or base + x, rounded to `dtype`; and whether all of it is finite."""
    out = torch.empty(x.shape, dtype=dtype)
    added = base.data_ptr() if base is not None else None
    return out, bool(call("narrow", x.data_ptr(), added, out.data_ptr(), _DTYPES[str(dtype)], x.numel()))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    out = torch.empty_like(tensors[0])
    call("weighted_sum", _pointers(tensors), _floats(weights), len(tensors), out.data_ptr(), out.numel())
    return out


def elected_sum(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    out = torch.empty_like(deltas[0])
    call("elected_sum", _pointers(deltas), _floats(weights), len(deltas), normalize, scale, out.data_ptr(), out.numel())
    return out


def gram(tensors: Sequence[Tensor]) -> Tensor:
    """Inner products, float64 `[tensors, tensors]`."""
    out = torch.empty((len(tensors), len(tensors)), dtype=torch.float64)
    call("gram", _pointers(tensors), len(tensors), tensors[0].numel(), out.data_ptr())
    return out


def l1(x: Tensor) -> float:
    return float(call("l1", x.data_ptr(), x.numel()))


def uniform(key1: int, key2: int, low: int, out: Tensor) -> None:
    call("uniform", key1, key2, low, out.data_ptr(), out.numel())


def high(x: Tensor, counts: Tensor) -> None:
    """Count the upper 15 bits of the magnitudes; counts int64 `[2^15]`."""
    call("high", x.data_ptr(), x.numel(), counts.data_ptr())


def low(x: Tensor, bin: int, counts: Tensor) -> None:
    """Count the lower 16 bits of the magnitudes whose upper bits are `bin`; counts int64 `[2^16]`."""
    call("low", x.data_ptr(), x.numel(), bin, counts.data_ptr())


def count(x: Tensor, value: float) -> int:
    """How many magnitudes equal `value`."""
    return int(call("count", x.data_ptr(), x.numel(), value))


def keep(x: Tensor, equals: int, value: float) -> Tensor:
    """x where its magnitude exceeds `value`, or equals it in the first `equals` entries; x * 0 elsewhere."""
    out = torch.empty_like(x)
    call("keep", x.data_ptr(), x.numel(), equals, value, out.data_ptr())
    return out


def drop(x: Tensor, u: Tensor, density: float) -> Tensor:
    """x where u < density, x * 0 elsewhere."""
    out = torch.empty_like(x)
    call("drop", x.data_ptr(), u.data_ptr(), x.numel(), density, out.data_ptr())
    return out


def call(name: str, *arguments: object) -> int | float:
    """Call a kernel; the interpreter's lock is free meanwhile."""
    loaded = library()
    assert loaded is not None, "ask `suit` first"
    result: int | float = getattr(loaded, f"plait_{name}")(*arguments)
    return result


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (_P * len(tensors))(*(t.data_ptr() for t in tensors))


def _floats(values: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    return (_FLOAT * len(values))(*values)
