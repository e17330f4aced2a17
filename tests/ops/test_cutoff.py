"""The k largest magnitudes, against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.cut import Cut
from plait.ops import cutoff
from plait.ops.cutoff import EVERYTHING, NOTHING, cutoffs, order_statistics

#: few values, so that equals are common; signed zeros, the smallest float32, neighbours in the last bit, the same upper 15 bits
VALUES = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1.0,
    -1.0,
    1.0000001,
    -1.0000001,
    1.001,
    2.0,
    3.4e38,
    -3.4e38,
    float("inf"),
    0.1,
    -0.1,
]
NUMBERS = st.one_of(st.sampled_from(VALUES), st.floats(width=32, allow_nan=False))


BOTH_LOOPS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def counted(search):
    """What a search finds with the histograms, which it makes of large tensors only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoff, "_SMALL", 0)
        return search()


def sorted_mask(x: torch.Tensor, k: int) -> np.ndarray:
    order = np.argsort(-np.abs(x.float().numpy().reshape(-1)), kind="stable")
    mask = np.zeros(x.numel(), dtype=np.float32)
    mask[order[: max(k, 0)]] = 1
    return mask


def cut_mask(cut, x: torch.Tensor, rows: int) -> np.ndarray:
    pieces = [cut.mask(x[row : row + rows], row * x.shape[1]) for row in range(0, len(x), rows)]
    return torch.cat(pieces).reshape(-1).numpy()


@BOTH_LOOPS
@given(
    numbers=st.lists(NUMBERS, min_size=1, max_size=40),
    columns=st.integers(1, 4),
    rows=st.integers(1, 12),
    data=st.data(),
)
def test_cutoffs_keep_what_a_stable_sort_keeps(numbers, columns, rows, data):
    """Whatever the values and the pieces, exactly the k first of a stable sort by falling magnitude are kept."""
    numbers = numbers[: len(numbers) // columns * columns] or numbers[:1] * columns
    x = torch.tensor(numbers, dtype=torch.float32).reshape(-1, columns)
    keep = data.draw(st.lists(st.integers(-1, x.numel() + 1), min_size=1, max_size=3))
    for cuts in (cutoffs(Cut([x]), keep), counted(lambda: cutoffs(Cut([x], rows), keep))):
        for cut, k in zip(cuts, keep, strict=True):
            assert np.array_equal(cut_mask(cut, x, rows), sorted_mask(x, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cutoffs_of_several_models(dtype):
    """Each model has its own cutoff; a longer list of numbers starts over with the first model."""
    g = torch.Generator().manual_seed(0)
    models = [torch.randn(300, 70, generator=g).mul_(10.0**-i).to(dtype) for i in range(3)]
    keep = [5000, 1, 20_999, 12, 20_000, 0]
    cuts = cutoffs(Cut(models, 41), keep)
    for i, (cut, k) in enumerate(zip(cuts, keep, strict=True)):
        assert np.array_equal(cut_mask(cut, models[i % 3], 41), sorted_mask(models[i % 3], k))


def test_cutoffs_measure_what_they_are_told():
    """`of` says which tensors of a piece are measured."""
    x, y = torch.randn(2, 400, 30, generator=torch.Generator().manual_seed(0))
    (cut,) = cutoffs(Cut([x, y], 70), [100], of=lambda piece: [piece.models[0] - piece.models[1]])
    assert np.array_equal(cut_mask(cut, x - y, 70), sorted_mask(x - y, 100))


def test_nothing_is_read_to_keep_everything_or_nothing():
    """The pieces are not gone through where all or none of the entries are kept."""
    pieces = Cut([torch.ones(4, 3), torch.ones(4, 3)])
    assert cutoffs(pieces, [12, 0]) == [EVERYTHING, NOTHING]
    assert cutoffs(pieces, [99, -1]) == [EVERYTHING, NOTHING]
    assert pieces.passes == []


def test_the_third_pass_is_only_for_equals_at_the_cut():
    """Two passes find a cutoff that separates; equals across it need a third, which ends where they are found."""
    distinct = Cut([torch.arange(10_000.0).reshape(100, 100)], 10)
    cutoffs(distinct, [10])
    assert len(distinct.passes) == 2
    equal = Cut([torch.ones(100, 100)], 10)
    (cut,) = cutoffs(equal, [10])
    assert len(equal.passes) == 3
    assert cut.stop == 10


def test_nan_is_never_made_a_number():
    """What is not kept is multiplied by 0, so that NaN stays NaN; NaN counts as larger than all numbers."""
    x = torch.tensor([[1.0, float("nan"), 3.0, 2.0]])
    (cut,) = cutoffs(Cut([x]), [2])
    assert torch.equal(cut.keep(x, 0).isnan(), x.isnan())
    assert cut.keep(x, 0)[0, 2] == 3
    assert cut.keep(x, 0)[0, 3] == 0
    for fixed in (EVERYTHING, NOTHING):
        assert torch.equal(fixed.keep(x, 0).isnan(), x.isnan())


@BOTH_LOOPS
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40), rows=st.integers(1, 12), data=st.data())
def test_order_statistics_are_those_of_a_sort(numbers, rows, data):
    """Position p is the p-th of the sorted magnitudes, from 0."""
    x = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1)
    positions = data.draw(st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=3))
    found = counted(lambda: order_statistics(Cut([x], rows), positions, lambda piece: piece.models[0]))
    assert found == order_statistics(Cut([x]), positions, lambda piece: piece.models[0])
    assert found == [float(np.sort(np.abs(x.numpy().reshape(-1)))[p]) for p in positions]


def test_inputs_are_left_alone():
    """Neither search nor mask changes what it is given."""
    for rows in (50, 500):
        x = torch.randn(rows, 20, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        (cut,) = cutoffs(Cut([x], 250), [100])
        cut.keep(x, 0)
        order_statistics(Cut([x], 250), [3], lambda piece: piece.models[0])
        assert torch.equal(x, before)
