"""Inputs that lie in files are read window by window: where windows end changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import BinaryIO

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


def written(file: BinaryIO, entries: int, codes: Sequence[str]) -> tuple[list[np.ndarray], list[fused.Place]]:
    """Random numbers of these dtypes, one after the other in a file: as float32, and where they are."""
    stored, places, noise = [], [], np.random.default_rng(entries)
    file.write(b"head")
    for code in codes:
        x = noise.standard_normal(entries).astype("<f4")
        x[::7], x[3::11], x[5::13] = 0.0, -0.0, 1e-41
        raw = {"F32": x, "F16": x.astype("<f2"), "BF16": (x.view("<u4") >> 16).astype("<u2")}[code]
        stored.append(raw.astype("<f4") if code != "BF16" else (raw.astype("<u4") << 16).view("<f4"))
        places.append(fused.Place(kernels.DTYPES[code][0], file=file.fileno(), offset=file.tell()))
        file.write(raw.tobytes())
    file.flush()
    return stored, places


@pytest.mark.parametrize("base", [None, "F32", "BF16"])
@pytest.mark.parametrize("models", [1, 3, 9])
@pytest.mark.parametrize(("rows", "columns"), [(3001, 97), (5, 60_001), (299_993, 1), (40, 7)])
def test_sums(rows: int, columns: int, models: int, base: str | None, tmp_path: Path) -> None:
    """Sums over blocks that windows end in, or that end in windows, against numpy's, bit for bit."""
    block, codes = block_rows(columns) * columns, ("F32", "BF16", "F16") * 3
    with open(tmp_path / "file", "w+b") as file:
        stored, places = written(file, rows * columns, (base, *codes) if base else codes)
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


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("base", [None, "F32", "BF16"])
@pytest.mark.parametrize("code", ["BF16", "F16"])
@pytest.mark.parametrize("models", [1, 2, 3, 4, 5])
def test_weighted_sums(models: int, code: str, base: str | None, add: bool, tmp_path: Path) -> None:
    """Sums of inputs, or of their differences to a base, which may be added again, against numpy's, bit for bit."""
    entries, weights = 250_007, np.linspace(0.3, -1.1, models).astype("f4")
    with open(tmp_path / "file", "w+b") as file:
        stored, places = written(file, entries, [*([base] if base else []), *[code] * models])
        span = fused.Span(1, entries, 0, entries, places.pop(0) if base else None)
        merged = fused.Merged([fused.Raw(place, span, []) for place in places], fused.SUM, weights.tolist())
        out = np.empty(entries, "<f4")
        assert merged.write(out.ctypes.data, kernels.DTYPES["F32"][0], add and base is not None)
    under = stored.pop(0) if base else None
    terms = [(x if under is None else x - under) * w for x, w in zip(stored, weights, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    expected = under + total if add and under is not None else total
    assert out.tobytes() == expected.astype("<f4").tobytes()
