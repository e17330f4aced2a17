"""How sure a score is: percentile bootstrap over the items, and for two models over the same items, pair by pair.

Reference: Efron; Tibshirani, An Introduction to the Bootstrap (1993).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plait.evaluate.records import Measure

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
_BLOCK = 2_000_000  # drawn items at once

Array = Any  # numpy's arrays of float64


def score(measures: Sequence[Measure]) -> float:
    """The measures of a task's items together: their weighted mean, or e to its power."""
    values, weights = _columns(measures)
    return float(_together(values, weights, measures[0].mean))


def interval(measures: Sequence[Measure]) -> tuple[float, float] | None:
    """95 % interval of `score`; None for fewer than two items."""
    if len(measures) < 2:
        return None
    values, weights = _columns(measures)
    found = [_together(values[rows], weights[rows], measures[0].mean) for rows in _draws(len(values))]
    return _percentiles(np.concatenate(found))


def difference_interval(one: Sequence[Measure], other: Sequence[Measure]) -> tuple[float, float] | None:
    """95 % interval of `score(one) - score(other)`, when both are of the same items in the same order."""
    if len(one) < 2:
        return None
    (v1, w1), (v2, w2), mean = _columns(one), _columns(other), one[0].mean
    found = [_together(v1[rows], w1[rows], mean) - _together(v2[rows], w2[rows], mean) for rows in _draws(len(one))]
    return _percentiles(np.concatenate(found))


def _columns(measures: Sequence[Measure]) -> tuple[Array, Array]:
    return np.array([m.value for m in measures]), np.array([m.weight for m in measures])


def _together(values: Array, weights: Array, mean: str) -> Array:
    """Over the last axis."""
    found = (values * weights).sum(-1) / weights.sum(-1)
    return np.exp(found) if mean == "exp" else found


def _draws(items: int) -> Iterator[Array]:
    """Which items each resample has, in blocks, int64 [resamples, items]; the same for the same number of items."""
    generator = np.random.default_rng(SEED)
    rows = max(1, min(RESAMPLES, _BLOCK // items))
    for begin in range(0, RESAMPLES, rows):
        yield generator.integers(0, items, (min(rows, RESAMPLES - begin), items))


def _percentiles(found: Array) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
