"""Sums over whole tensors: exact over blocks, so that neither pieces nor threads change a bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ops.cut import Cut
from plait.ops.gram import gram
from plait.ops.pieces import BLOCK, block_rows, row_sums, total
from plait.ops.rescale import l1_factors


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def models(rows: int, columns: int, number: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, columns, generator=g) * 10.0 ** torch.randint(-6, 6, (rows, 1), generator=g)
        for _ in range(number)
    ]


def sums(block: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([row_sums(x.abs().double()) for x in block])


@pytest.mark.parametrize(("rows", "columns"), [(1000, 200), (200_000, 1), (3, 100_000)])
def test_pieces_do_not_change_a_sum(rows, columns):
    """Pieces of one block, of several and of everything give the same bits."""
    x, block = models(rows, columns), block_rows(columns)
    whole = Cut(x)
    for piece in (block, 2 * block):
        assert torch.equal(total(Cut(x, piece), sums), total(whole, sums))
        assert np.array_equal(gram(Cut(x, piece)), gram(whole))


@pytest.mark.parametrize("number", [2, 3, 8])
def test_threads_do_not_change_a_sum(threads, number):
    """One thread and many give the same bits, with blocks of every length up to the longest."""
    for rows, columns in ((1000, 200), (3, 100_000)):
        x = models(rows, columns)
        results = []
        for n in (1, number):
            threads(n)
            results.append((total(Cut(x), sums), gram(Cut(x))))
        for one, many in zip(*results, strict=True):
            assert np.array_equal(one, many)


def test_block_sums_are_added_exactly():
    """Large block sums that cancel leave the small ones whole."""
    x = torch.zeros(5, BLOCK, dtype=torch.float64)
    x[:, 0] = torch.tensor([1e30, 1.0, -1e30, 1e-30, 2.0], dtype=torch.float64)
    found = total(Cut([x], 1), lambda block: block[0].sum())
    assert found == math.fsum([1e30, 1.0, -1e30, 1e-30, 2.0])


def test_gram_is_the_matrix_of_inner_products():
    """G[i, j] is the float64 inner product, to its rounding."""
    x = models(500, 300)
    flat = torch.stack([v.reshape(-1) for v in x]).double()
    torch.testing.assert_close(
        torch.tensor(gram(Cut(x, 17)), dtype=torch.float64), flat @ flat.T, rtol=1e-13, atol=1e-8
    )


def test_l1_factors_bring_back_the_norm():
    """A factor is sum |x| over sum |what is left|, and 1 where either is below 1e-7."""
    x, zero, tiny = torch.tensor([[3.0, -1.0, 4.0]]), torch.zeros(1, 3), torch.full((1, 3), 1e-9)

    def first_only(piece):
        return [v * torch.tensor([1.0, 0, 0]) for v in piece.models]

    assert l1_factors(Cut([x, zero, tiny]), first_only) == [8 / 3, 1.0, 1.0]
    assert l1_factors(Cut([x]), lambda piece: [piece.models[0] * 0]) == [1.0]


def test_row_sums_are_sums_of_rows():
    """The last axis is summed, whatever the shape, to rounding."""
    g = torch.Generator().manual_seed(0)
    for shape in ((1,), (7,), (40_000,), (3, 40_000), (2, 5, 16_385), (300, 2)):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        torch.testing.assert_close(row_sums(x), x.sum(-1, keepdim=True), rtol=1e-13, atol=1e-11)
