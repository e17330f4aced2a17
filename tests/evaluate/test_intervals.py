"""Intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from plait.evaluate.intervals import difference_interval, interval, score
from plait.evaluate.records import Measure


def measures(values: object) -> list[Measure]:
    return [Measure(float(v)) for v in np.asarray(values)]


def test_a_score_is_the_weighted_mean() -> None:
    """A score is the weighted mean, or e to its power."""
    assert score(measures([1, 0, 0, 1])) == 0.5
    weighted = [Measure(1.0, 3.0), Measure(5.0, 1.0)]
    assert score(weighted) == 2.0
    assert score([Measure(m.value, m.weight, False, "exp") for m in weighted]) == pytest.approx(np.exp(2.0))


def test_intervals_cover() -> None:
    """Of 95 % intervals, about 95 in 100 hold the true share; of those of a difference, the true difference."""
    generator = np.random.default_rng(1)
    trials, hits, pairs = 200, 0, 0
    for _ in range(trials):
        a = generator.random(150) < 0.6
        b = np.where(generator.random(150) < 0.5, a, generator.random(150) < 0.4)  # half of b follows a
        low, high = interval(measures(a)) or (0, 0)
        hits += low <= 0.6 <= high
        low, high = difference_interval(measures(a), measures(b)) or (0, 0)
        pairs += low <= 0.1 <= high
    # of 200, the binomial has 183 to 197 within three standard errors of 95 %; the percentile bootstrap falls a little short
    assert 180 <= hits <= 198
    assert 180 <= pairs <= 198


def test_pairs_are_compared_item_by_item() -> None:
    """A model that is a little better on every item is surely better, however much the items differ."""
    generator = np.random.default_rng(2)
    a = generator.normal(0, 100, 80)
    low, high = difference_interval(measures(a + 1), measures(a)) or (0, 0)
    assert (low, high) == (pytest.approx(1), pytest.approx(1))


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    """For many items it is the mean ± 1.96 standard errors."""
    values = np.random.default_rng(3).normal(5, 2, 3000)
    low, high = interval(measures(values)) or (0, 0)
    error = values.std() / np.sqrt(3000)
    assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.1 * error)


def test_the_same_numbers_each_time() -> None:
    """An interval is a function of the measures."""
    values = measures(np.random.default_rng(4).random(37))
    assert interval(values) == interval(values)
    assert difference_interval(values, values) == (0, 0)


def test_one_item_has_no_interval() -> None:
    """One item tells nothing of the spread."""
    assert interval(measures([1])) is None
    assert difference_interval(measures([1]), measures([0])) is None
