"""n:m sparsity, and scores of competition."""

from __future__ import annotations

import math

import torch

from plait.ops.balanced import largest_of_blocks
from plait.ops.competition import clipped, competition


def test_each_block_keeps_its_largest():
    """The n largest of every m, equal ones in order; a shorter block its share, rounded up; zeros never."""
    x = torch.tensor(
        [[1.0, 3.0, 2.0, 2.0, 0.0, 0.0, 0.0, 5.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]]
    )
    wanted = [[0, 1, 1, 0, 0, 0, 0, 1, 0, 1], [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert largest_of_blocks(x, 2, 4).tolist() == wanted


def test_a_block_may_be_longer_than_the_row():
    """A row of 3 in blocks of 8 keeps 3/8 of n, rounded up."""
    assert largest_of_blocks(torch.tensor([[1.0, 3.0, 2.0]]), 4, 8).tolist() == [[0, 1, 1]]
    assert largest_of_blocks(torch.tensor([[7.0]]), 1, 1000).tolist() == [[1]]


def test_everything_is_kept_where_n_is_m():
    """keep == block is everything but the zeros, whatever the row's length."""
    x = torch.tensor([[1.0, 0.0, 3.0, 2.0, 5.0]])
    assert torch.equal(largest_of_blocks(x, 3, 3), (x > 0).float())


def test_scores_grow_with_size_and_agreement():
    """Larger changes and larger agreement score higher; against the sum there is no score; a zero delta has none."""
    x, y = torch.tensor([1.0, 2.0, 2.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0])
    a, b = competition([x, y], [2.0, 3.0])
    assert a[0] < a[1] < a[2]
    assert a[3] == a[4] == 0
    assert b[3] == max(b)
    assert torch.equal(competition([x * 0, y], [0.0, 3.0])[0], torch.zeros(5))


def test_limits_are_kept():
    """Nothing exceeds its limit; an infinite one changes nothing."""
    x = torch.tensor([-3.0, 0.5, 2.0])
    assert clipped(x, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert torch.equal(clipped(x, math.inf), x)
