"""What mergekit 0.1.5 gets wrong inside of methods, and what the same recipe gives here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.oracles import importance
from methods.test_edges import merge


def near(*shape: int, count: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """A base and so many models near it, float32."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g)
    return [base, *(base + 0.1 * torch.randn(shape, generator=g) for _ in range(count))]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_row_21_rescale(name):
    """The enlargement of the papers, by 1 / the probability, is offered beside mergekit's and keeps the mean over many seeds."""
    x = torch.tensor(
        [[4.0, *[0.01] * 9]]
    )  # one dominant entry: an L1 match is far off where it is dropped, or kept alone
    given = {"density": 0.5, "weight": 1.0, **({"epsilon": 0.2} if name.startswith("della") else {})}
    draws = {
        by: torch.stack([merge(name, [x], x * 0, seed=s, rescale_by=by, **given) for s in range(600)]).double()
        for by in ("density", "l1")
    }
    mean, error = draws["density"].mean(0), draws["density"].std(0) / math.sqrt(600)
    assert bool(((mean - x).abs() <= 5 * error).all())
    assert draws["l1"][:, 0, 1].mean() > 3 * x[0, 1]  # the small entries take the place of the large one
    default = merge(name, [x], x * 0, seed=1, **given)
    assert torch.equal(default, merge(name, [x], x * 0, seed=1, rescale_by="l1", **given))


def test_row_22_ties_among_equals():
    """Of equal magnitudes at a cut the first are kept, from bfloat16 models as from float32."""
    g = torch.Generator().manual_seed(0)
    base = torch.zeros(300, 500)
    x = torch.randint(-4, 5, base.shape, generator=g) / 4
    flat = x.flatten()
    order = torch.argsort(flat.abs(), descending=True, stable=True)
    wanted = torch.zeros_like(flat)
    wanted[order[: flat.numel() * 2 // 5]] = flat[order[: flat.numel() * 2 // 5]]
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("ties", "breadcrumbs_ties"):
            more = {"gamma": 0.0} if name == "breadcrumbs_ties" else {}
            merged = merge(name, [x.to(dtype)], base.to(dtype), density=0.4, **more)
            assert torch.equal(merged.float().flatten(), wanted)


def test_row_22_karcher_of_bfloat16():
    """karcher of bfloat16 models is the float64 mean rounded once: half a unit in the last place, not sixty."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 80, generator=g).bfloat16() for _ in range(2))
    a, b = (v.double().numpy() for v in (x, y))
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    middle = (u + v) / np.linalg.norm(u + v) * (np.linalg.norm(a) + np.linalg.norm(b)) / 2
    off = np.abs(merge("karcher", [x, y]).double().numpy() - middle)
    assert (off <= 0.501 * 2.0**-7 * 2.0 ** np.floor(np.log2(np.abs(middle) + 1e-30))).all()


def test_row_23_arcee_fusion_is_not_random():
    """Above a million entries quantiles are exact, and two calls, whatever the seed, give the same bytes."""
    base, x = near(1100, 1000)
    first, other = (merge("arcee_fusion", [x], base, seed=seed) for seed in (0, 1))
    assert torch.equal(first, other)
    score, threshold = importance(x.numpy(), base.numpy())
    taken = torch.as_tensor(score >= threshold)
    assert (taken != (first == x)).double().mean() < 1e-4  # float32 and float64 differ at the threshold itself
    assert 0 < int(taken.sum()) < taken.numel()


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(1,), (5, 1), (1, 1), ()])
def test_row_32_della_one_element(name, shape):
    """Rows and vectors of one entry are kept with probability density: each is the model's, or the base's."""
    base, x = near(*shape)
    seen = set()
    for seed in range(20):
        merged = merge(name, [x], base, seed=seed, density=0.5, rescale=False)
        dropped = merged == base
        assert bool(((merged - x).abs() <= 2**-22 * base.abs())[~dropped].all())
        seen |= set(dropped.flatten().tolist())
    assert seen == {True, False}
