"""The random numbers: a fixed function of their place, uniform, and independent wherever the place differs.

All draws are fixed, so nothing here is a matter of luck. Limits are 5 standard deviations: a good generator stays below them but
for one in about two million draws, and the biases they look for are many times larger.
"""

from __future__ import annotations

import math

import pytest
import torch

from methods import oracles
from plait.ops.random import uniform

N = 1 << 18
SIGMA = 5
PLACES = [(0, "model.embed_tokens.weight", 0), (1, "lm_head.weight", 3), (2**63, "", 1)]


@pytest.mark.parametrize("start", [0, 1, 65_530, 2**31 - 3, 2**32 - 5, 7 * 2**32 + 12])
@pytest.mark.parametrize(("seed", "tensor", "model"), PLACES)
def test_numbers_are_those_of_the_docstring(seed, tensor, model, start):
    """The numbers are those that plain integer arithmetic gives, also across 2^31, 2^32 and the runs in which they are drawn."""
    found = uniform(seed, tensor, model, start, 20)
    assert found.dtype == torch.float32
    assert found.tolist() == oracles.uniform(seed, tensor, model, start, 20).tolist()


def test_numbers_do_not_depend_on_the_cut():
    """Drawn at once or in parts of any size, an entry's number is the same."""
    whole = uniform(3, "w", 1, 0, 200_000)
    for size in (1, 999, 65_536, 70_001):
        for start in range(0, 200_000, 70_003):
            count = min(size, 200_000 - start)
            assert torch.equal(uniform(3, "w", 1, start, count), whole[start : start + count])
    assert uniform(3, "w", 1, 5, 0).shape == (0,)


def test_numbers_stay_the_same_for_ever():
    """The first numbers of a stream are pinned: a merge of today can be repeated."""
    drawn = (uniform(0, "w", 0, 0, 34) * 2**24).int().tolist()
    assert drawn[:4] == [13158332, 1236529, 14566850, 2975887]
    assert drawn[16:18] + drawn[32:] == [12353480, 3255314, 12029222, 12669214]


@pytest.mark.parametrize(("seed", "tensor", "model"), PLACES)
def test_numbers_are_uniform(seed, tensor, model):
    """Mean, variance, a histogram of 256 bins, the largest gap to the straight line and each of 24 bits are as they should be."""
    u = uniform(seed, tensor, model, 0, N)
    assert u.min() >= 0
    assert u.max() < 1
    u = u.double()
    assert abs(u.mean() - 0.5) < SIGMA * math.sqrt(1 / 12 / N)
    assert abs(((u - 0.5) ** 2).mean() - 1 / 12) < SIGMA * math.sqrt(1 / 180 / N)
    counts = torch.bincount((u * 256).long(), minlength=256).double()
    assert abs(chi_square(counts) - 255) < SIGMA * math.sqrt(2 * 255)
    steps = torch.arange(1, N + 1, dtype=torch.float64) / N
    assert (u.sort().values - steps).abs().max() < 2.8 / math.sqrt(N)  # Kolmogorov: exceeded once in 3 million
    bits = (u * 2**24).long()
    for bit in range(24):
        assert abs(((bits >> bit) & 1).double().mean() - 0.5) < SIGMA * 0.5 / math.sqrt(N), bit


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def independent(a: torch.Tensor, b: torch.Tensor) -> None:
    """Neither correlated nor, in 16 x 16 boxes, dependent in another way."""
    a, b = a.double(), b.double()
    n = len(a)
    correlation = float(((a - 0.5) * (b - 0.5)).mean() * 12)
    assert abs(correlation) < SIGMA / math.sqrt(n)
    boxes = torch.bincount((a * 16).long() * 16 + (b * 16).long(), minlength=256).double()
    assert abs(chi_square(boxes) - 255) < SIGMA * math.sqrt(2 * 255)


@pytest.mark.parametrize(
    "other",
    [
        (1, "w", 0),
        (2**32, "w", 0),
        (-1, "w", 0),
        (0, "v", 0),
        (0, "w2", 0),
        (0, "W", 0),
        (0, "w", 1),
        (0, "w", 2),
        (0, "w", 10),
    ],
)
def test_other_seeds_tensors_and_models_draw_independently(other):
    """Streams that differ in one of seed, tensor and model are independent, entry by entry and shifted by one."""
    a, b = uniform(0, "w", 0, 0, N), uniform(*other, 0, N)
    independent(a, b)
    independent(a[1:], b[:-1])


@pytest.mark.parametrize("lag", [1, 2, 3, 15, 16, 17, 32, 64, 1000, 4096, 65_536])
def test_neighbours_are_independent(lag):
    """An entry says nothing of the next one, of the one below it or of the one a run later."""
    u = uniform(0, "w", 0, 0, N)
    independent(u[lag:], u[:-lag])


def test_two_that_share_a_word_are_independent():
    """Of two entries 16 apart, the upper 16 bits of one say nothing of the other's, nor do any four of them."""
    u = uniform(0, "w", 0, 0, 4 * N).reshape(-1, 2, 16)
    a, b = ((u[:, i] * 2**16).long().reshape(-1) for i in (0, 1))
    for shift in (0, 4, 8, 12):
        independent(((a >> shift) % 16 + 0.5) / 16, ((b >> shift) % 16 + 0.5) / 16)
        independent(((a >> shift) % 16 + 0.5) / 16, b / 2**16)
        independent(a / 2**16, ((b >> shift) % 16 + 0.5) / 16)


def test_entries_beyond_four_billion_are_not_those_below():
    """The upper half of an entry's number counts."""
    independent(uniform(0, "w", 0, 0, N), uniform(0, "w", 0, 2**32, N))


def test_names_cannot_be_confused():
    """Seed, tensor and model are kept apart: (1, "1", 0) is not (11, "", 0), nor (1, "", 10)."""
    streams = [uniform(*place, 0, 64) for place in ((1, "1", 0), (11, "", 0), (1, "", 10), (1, "10", 0), (1, "1", 1))]
    assert len({tuple(s.tolist()) for s in streams}) == len(streams)


def test_the_global_generator_is_left_alone():
    """Drawing neither reads nor moves torch's generator."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = uniform(0, "w", 0, 0, 100)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, uniform(0, "w", 0, 0, 100))
