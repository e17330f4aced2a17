"""How magnitudes lie around brackets, against numpy's counts."""

from __future__ import annotations

import numpy as np
import pytest

from plait import kernels
from plait.kernels import fused

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no kernels")


def stored(x: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as they are stored in a dtype, and as float32."""
    if code == "BF16":
        raw = (x.view("<u4") >> 16).astype("<u2")
        return raw, (raw.astype("<u4") << 16).view("<f4")
    raw = x.astype({"F32": "<f4", "F16": "<f2"}[code])
    return raw, raw.astype("<f4")


@pytest.mark.parametrize("base", [None, "BF16", "F32"])
@pytest.mark.parametrize("code", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("entries", [1, 31, 960, 5003])
def test_counts(entries: int, code: str, base: str | None) -> None:
    """Above, inside of each bin, and zero: wide and narrow brackets, two for one input, all values, and none."""
    noise, models = np.random.default_rng(entries), 3
    numbers = [noise.standard_normal(entries).astype("<f4") for _ in range(models + 1)]
    for x in numbers:
        x[::7], x[3::11], x[5::13], x[2::401] = 0.0, -0.0, 1e-41, np.inf
    raw, wide = zip(*(stored(x, code) for x in numbers[1:]), strict=True)
    under = stored(numbers[0], base) if base else None
    with np.errstate(invalid="ignore"):
        seen = [x - under[1] if under else x for x in wide]
    bits = [x.view("<u4") & 0x7FFFFFFF for x in seen]
    places = [fused.Place(kernels.DTYPES[code][0], address=x.ctypes.data, alive=x) for x in raw]
    less = fused.Place(kernels.DTYPES[base or "F32"][0], address=under[0].ctypes.data) if under else None
    span = fused.Span(1, entries, 0, entries, less)

    one = int(np.float32(1).view("<u4"))
    asked = [  # input, low, span, shift
        (0, 0, 1 << 31, 16),
        (1, one - (1 << 20), 1 << 21, 5),
        (1, one - 100, 200, 0),
        (2, one - (1 << 23), 1 << 24, 6),
        (2, 0, 1, 0),
        (0, (1 << 31) - 8, 8, 0),
    ]
    brackets, counts = (fused.Bracket * len(asked))(), []
    for b, (number, low, size, shift) in zip(brackets, asked, strict=True):
        counts.append(np.zeros((size >> shift) + 1, "<u4"))
        b.input, b.low, b.span, b.shift, b.counts = number, low, size, shift, counts[-1].ctypes.data
    fused.select([fused.Raw(place, span, []) for place in places], brackets)

    for b, found, (number, low, size, shift) in zip(brackets, counts, asked, strict=True):
        own = bits[number].astype("i8")
        inside = own[(own >= low) & (own < low + size)]
        assert b.above == (own >= low + size).sum()
        assert b.zeros == (own == 0).sum()
        assert found.tolist() == np.bincount((inside - low) >> shift, minlength=len(found)).tolist()
