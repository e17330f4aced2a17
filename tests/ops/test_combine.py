"""Sums and elections, against their definition with booleans."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.ops.combine import agreeing, delta_weights, elected_sum, weighted_sum

SMALL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1e-45, -1e-30, 0.1, -0.1])


def by_booleans(deltas, weights, normalize, scale):
    weighted = [d * w for d, w in zip(deltas, weights, strict=True)]
    vote = weighted[0].clone()
    for d in weighted[1:]:
        vote += d
    up = vote >= 0
    merged, share = torch.zeros_like(vote), torch.zeros_like(vote)
    for d, w in zip(weighted, weights, strict=True):
        agrees = torch.where(up, d > 0, d < 0)
        merged += torch.where(agrees, d, 0)
        share += agrees * w
    if normalize:
        merged /= torch.where(share == 0, 1.0, share)
    return merged * scale


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.lists(st.tuples(SMALL, SMALL, SMALL), min_size=1, max_size=9),
    weights=st.tuples(*[st.sampled_from([1.0, 0.3, -0.7, 0.0])] * 3),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, 0.7, -2.0]),
)
def test_election_is_its_definition_to_the_bit(columns, weights, normalize, scale):
    """Arithmetic masks give what booleans and `where` give, zeros, negative weights and tied votes included."""
    deltas = [torch.tensor(column) for column in zip(*columns, strict=True)]
    assert torch.equal(elected_sum(deltas, weights, normalize, scale), by_booleans(deltas, weights, normalize, scale))


def test_agreeing_gives_the_sign_and_the_magnitudes_that_have_it():
    """A sum of 0 elects +; zeros take part nowhere."""
    sign, agreed = agreeing([torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([-1.0, -2.0, -3.0, 0.0])])
    assert sign.tolist() == [1, -1, -1, 1]
    assert [x.tolist() for x in agreed] == [[1, 1, 0, 0], [0, 2, 3, 0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_election_keeps_what_is_not_finite(value):
    """NaN and infinity are in the result, whichever way the vote goes."""
    for other in (1.0, -1.0):
        merged = elected_sum([torch.tensor([value]), torch.tensor([other])], [1.0, 1.0], True, 1.0)
        assert not merged.isfinite().any()


def test_inputs_are_left_alone():
    """Sums and elections do not write into what they are given."""
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    before = x.clone(), y.clone()
    weighted_sum([x, y], [1.0, 1.0])
    elected_sum([x, y], [1.0, 1.0], True, 1.0)
    list(agreeing([x, y])[1])
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_products_are_rounded_before_they_are_added():
    """No fused multiply-add: the result is that of two float32 operations."""
    x, y = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_sum([x, y], [0.3, 0.7]), x * 0.3 + y * 0.7)


def test_delta_weights_divide_by_the_sum_unless_it_is_nothing():
    """Weights are scaled, and divided by their sum; a sum below 1e-8 divides by 1."""
    assert delta_weights([1.0, 3.0], True, 2.0) == [0.5, 1.5]
    assert delta_weights([1.0, 3.0], False, 2.0) == [2.0, 6.0]
    assert delta_weights([1.0, -1.0], True, 1.0) == [1.0, -1.0]
