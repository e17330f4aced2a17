"""Inputs that lie in files are read window by window: where windows end changes no bit."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest

from plait import kernels
from plait.kernels import fused
from plait.ops.pieces import block_rows

LANES = 16  # sums that are kept side by side

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no kernels")


def in_order(terms: np.ndarray) -> float:
    """The sum of a block's terms as kernels take it: each lane from first to last, then the lanes."""
    lanes = np.zeros((-(-len(terms) // LANES), LANES))
    lanes.reshape(-1)[: len(terms)] = terms
    return float(np.cumsum(np.cumsum(lanes, axis=0)[-1])[-1])


@pytest.mark.parametrize("base", [None, "F32", "BF16"])
@pytest.mark.parametrize("models", [1, 3, 9])
@pytest.mark.parametrize(("rows", "columns"), [(3001, 97), (5, 60_001), (299_993, 1), (40, 7)])
def test_sums(rows: int, columns: int, models: int, base: str | None, tmp_path: Path) -> None:
    """Sums over blocks that windows end in, or that end in windows, against numpy's, bit for bit."""
    noise, block = np.random.default_rng(rows + models), block_rows(columns) * columns
    stored, places = [], []
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"head")
        for code in ("F32", "BF16", "F16") * 3 if base is None else (base, *("BF16", "F32", "F16") * 3):
            x = noise.standard_normal(rows * columns).astype("<f4")
            raw = {"F32": x, "F16": x.astype("<f2"), "BF16": (x.view("<u4") >> 16).astype("<u2")}[code]
            stored.append(raw.astype("<f4") if code != "BF16" else (raw.astype("<u4") << 16).view("<f4"))
            places.append(fused.Place(kernels.DTYPES[code][0], file=file.fileno(), offset=file.tell()))
            file.write(raw.tobytes())
        file.flush()
        under = places.pop(0) if base else None
        span = fused.Span(rows, columns, 0, rows * columns, under)
        raws = [fused.Raw(place, span, []) for place in places[:models]]
        found = {kind: fused.sums(raws, kind, block) for kind in (fused.PRODUCTS, fused.LENGTHS, fused.SQUARES)}
    if base:
        stored = [x - stored[0] for x in stored[1:]]
    x = np.array(stored[:models], "f8")
    for i, at in enumerate(range(0, rows * columns, block)):
        part = x[:, at : at + block]
        pairs = [in_order(a * b) for a, b in combinations_with_replacement(part, 2)]
        assert found[fused.PRODUCTS][i] == pairs
        assert found[fused.LENGTHS][i] == [in_order(abs(a)) for a in part] * 2
        assert found[fused.SQUARES][i] == [in_order(a * a) for a in part]
    assert len(found[fused.SQUARES]) == -(-rows * columns // block)
