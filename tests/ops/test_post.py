"""What follows a merge: factors by depth, and by norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods import oracles_elementwise as oracles
from plait.ops.post import lines, norm, norm_factor, norm_guard


@pytest.mark.parametrize("count", [2, 5, 32])
def test_lines_is_a_straight_line(count):
    """From alpha at the first layer to alpha + beta at the last, in equal steps (2 roundings of numbers below 2)."""
    for layer in range(count):
        assert abs(lines(layer, count, 0.3, 1.4) - oracles.lines(layer, count, 0.3, 1.4)) <= 4e-16
    assert lines(0, count, 0.3, 1.4) == 0.3
    assert lines(count - 1, count, 0.3, 1.4) == 0.3 + 1.4


def test_lines_of_one_layer():
    """A stack of one layer gets alpha; layers outside of a stack are refused."""
    assert lines(0, 1, 0.3, 1.4) == 0.3
    for layer, count in ((-1, 4), (4, 4), (0, 0)):
        with pytest.raises(ValueError, match="count from 0"):
            lines(layer, count, 0.3, 1.4)


@pytest.mark.parametrize("shape", [(33, 65), (7,), (), (300, 517), (3, 8, 5)])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_norm_guard_agrees_with_its_oracle(shape, strength):
    """The merged delta gets the weighted mean of the norms, as far as `strength` says, to 1e-14 of its largest entry."""
    g = torch.Generator().manual_seed(0)
    deltas = [torch.randn(shape, generator=g, dtype=torch.float64) * scale for scale in (0.1, 1.0, 5.0)]
    merged, weights = sum(deltas) / 3, [0.5, 1.0, -0.2]
    found = norm_guard(merged, deltas, weights, strength).numpy()
    wanted = oracles.norm_guard(merged.numpy(), [d.numpy() for d in deltas], weights, strength)
    assert np.abs(found - wanted).max() <= 1e-14 * np.abs(wanted).max()


def test_norm_guard_gives_the_mean_norm():
    """After it the norm is the models' own: an average that had shrunk is as large as they are."""
    g = torch.Generator().manual_seed(0)
    deltas = [torch.randn(50, 70, generator=g) for _ in range(4)]
    guarded = norm_guard(sum(deltas) / 4, deltas, [1.0] * 4)
    assert math.isclose(norm(guarded), sum(map(norm, deltas)) / 4, rel_tol=1e-6)
    assert norm(sum(deltas) / 4) < 0.6 * norm(guarded)


def test_nothing_stays_nothing():
    """A merged delta of zeros, or weights of zeros, are left alone; the inputs are not changed."""
    x = torch.ones(3)
    assert torch.equal(norm_guard(x * 0, [x, x], [1.0, 1.0]), x * 0)
    assert norm_factor(2.0, [1.0, 1.0], [0.0, 0.0]) == 1.0
    norm_guard(x, [x * 2], [1.0])
    assert torch.equal(x, torch.ones(3))


def test_the_norm_does_not_depend_on_threads():
    """One thread and three give the same bits for a tensor of many scales."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90_000, generator=g) * 10.0 ** torch.randint(-6, 7, (90_000,), generator=g)
    before, found = torch.get_num_threads(), set()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.add(norm(x))
        finally:
            torch.set_num_threads(before)
    assert len(found) == 1
