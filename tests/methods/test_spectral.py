"""What the spectral methods and their bricks do: laws of linear algebra, and matrices where formulas stop to hold."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import make
import plait
from methods.oracles_spectral import ORACLES
from methods.settings import values
from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry
from plait.ops.calibrate import star, subspace_boost, svc
from plait.ops.interference import least_interference
from plait.ops.spectral import EXACT, low_rank, polar, right, rotation, row_basis, skew, svd, turn

WEIGHTED = [name for name in ORACLES if any(p.name == "weight" for p in registry()[name].parameters)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    q: Tensor = torch.linalg.qr(normal(rows, columns, seed=seed)).Q
    return q


def spectrum(rows: int, columns: int, s: list[float]) -> Tensor:
    """A matrix with these singular values."""
    return orthonormal(rows, len(s), 1) * torch.tensor(s, dtype=torch.float64) @ orthonormal(columns, len(s), 2).mT


def merge(name: str, models: list[Tensor], base: Tensor, tensor: str = "w", **given) -> Tensor:
    method = registry()[name]
    params = bind(method, values(name, given, len(models)))
    return merge_tensors(method, params, models, None if method.base == "ignored" else base, name=tensor)


# -- bricks


@pytest.mark.parametrize("shape", [(9, 20), (20, 9), (12, 12), (60, 9), (9, 60)])
def test_svd_is_one(shape):
    """u diag(s) v^T is the matrix, u and v are orthonormal, s descends, whichever way it is found."""
    x = normal(*shape)
    for rank in (None, min(shape)):
        u, s, v = svd(x, rank)
        assert bool((s.diff() <= 0).all())
        torch.testing.assert_close(u * s @ v.mT, x, rtol=0, atol=1e-12)
        for w in (u, v):
            torch.testing.assert_close(w.mT @ w, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("smallest", [2e-6, 1e-5, 0.9 * EXACT, 1.1 * EXACT, 1e-2])
def test_small_singular_values_are_exact(smallest):
    """A triplet a millionth as large as the first is found to a relative 1e-8, also where a Gram matrix would have lost it."""
    x = spectrum(90, 8, [1.0, 0.5, smallest * 2, smallest])
    _, s, v = svd(x, 4)
    torch.testing.assert_close(s[2:], torch.tensor([2 * smallest, smallest], dtype=torch.float64), rtol=1e-8, atol=0)
    wanted = orthonormal(8, 4, 2)[:, 3]
    assert 1 - float((v[:, 3] @ wanted).abs()) < 1e-8


def test_rank_and_floor_and_zero():
    """Values up to 1e-6 of the largest, up to `floor`, and beyond `rank` are left out; a zero matrix has none."""
    x = spectrum(40, 12, [4.0, 2.0, 1.0, 3e-6, 1e-7])
    assert len(right(x)[0]) == 3
    assert len(right(x, 2)[0]) == 2
    assert len(right(x, 0)[0]) == 0
    assert len(right(x, floor=1.5)[0]) == 2
    for shape in ((5, 7), (7, 5), (30, 5), (5, 30)):
        u, s, v = svd(torch.zeros(shape, dtype=torch.float64))
        assert (u.shape, s.shape, v.shape) == ((shape[0], 0), (0,), (shape[1], 0))
        assert torch.equal(polar(torch.zeros(shape, dtype=torch.float64)), torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(9, 20), (20, 9), (12, 12), (60, 9)])
def test_polar_factor_is_the_nearest_isometry(shape):
    """x = P H with H symmetric and not negative, so no orthonormal matrix is nearer; of rank 3 comes an isometry of rank 3."""
    x = normal(*shape)
    p = polar(x)
    small = p.mT @ x if shape[0] >= shape[1] else x @ p.mT
    torch.testing.assert_close(small, small.mT, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(small).min()) > 0
    partial = polar(low_rank(x, 3))
    torch.testing.assert_close(
        torch.linalg.svdvals(partial), (torch.arange(min(shape)) < 3).double(), rtol=0, atol=1e-10
    )


def test_row_basis_spans_the_rows():
    """Fewer rows than columns: every row is in the span. As many or more: there is nothing to save."""
    a, b = normal(3, 20, seed=1), normal(4, 20, seed=2)
    basis = row_basis([a, b])
    torch.testing.assert_close(b @ basis @ basis.mT, b, rtol=0, atol=1e-12)
    assert row_basis([a, b, normal(13, 20)]) is None


@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_rotation_is_the_nearest_one_of_determinant_1(n):
    """Orthogonal, determinant 1 even where the nearest orthogonal matrix is a reflection, and itself for a rotation."""
    for seed in range(6):
        x = normal(n, n, seed=seed)
        r = rotation(x)
        torch.testing.assert_close(r @ r.mT, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
        assert float(torch.linalg.det(r)) == pytest.approx(1)
        torch.testing.assert_close(rotation(r * 3), r, rtol=0, atol=1e-11)
        others = [rotation(normal(n, n, seed=100 + i)) for i in range(20)]
        assert all((x - r).norm() <= (x - other).norm() for other in others)


def test_rotation_of_what_says_nothing_is_none():
    """A zero matrix is not turned, and one without full rank only where it has a say."""
    one = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(rotation(one * 0), one, rtol=0, atol=1e-12)
    x = one.clone() * 0
    x[0, 1], x[1, 0] = -1.0, 1.0
    torch.testing.assert_close(rotation(x), x + torch.diag(torch.tensor([0.0, 0, 1, 1, 1])), rtol=0, atol=1e-10)


def test_cayley_there_and_back():
    """skew gives a skew matrix, turn its rotation less 1; half a turn has no form and gives zeros."""
    r = rotation(normal(7, 7))
    q = skew(r)
    assert torch.equal(q, -q.mT)
    torch.testing.assert_close(turn(q), r - torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-10)
    assert torch.equal(skew(-torch.eye(4, dtype=torch.float64)), torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(30, 8), (4, 30)])
def test_least_interference_is_a_minimum(shape):
    """No small step away from it disturbs less, and its start is what a filter of zeros returns."""
    deltas, weights = [normal(*shape, seed=i) for i in range(3)], [0.5, 2.0, 1.0]

    def disturbance(t: Tensor) -> float:
        pairs = zip(weights, deltas, strict=True)
        return sum(w * float(((t - d) @ d.mT).square().sum()) for w, d in pairs)

    t = least_interference(deltas, weights, lambda c: 1 / c)
    for seed in range(10, 20):
        assert disturbance(t + 1e-3 * normal(*shape, seed=seed)) > disturbance(t)
    begun = least_interference(deltas, weights, torch.zeros_like, start=[1.0, 2.0, 3.0])
    torch.testing.assert_close(begun, sum((i + 1) * d for i, d in enumerate(deltas)), rtol=0, atol=1e-12)


# -- methods


@pytest.mark.parametrize("name", [name for name in ORACLES if name not in ("ace", "wudi")])
def test_one_model_is_itself(name):
    """One model with weight 1 is returned, or its isotropic form with the same sum of singular values."""
    base, x = normal(20, 30), normal(20, 30, seed=1)
    merged = merge(name, [x], base, weight=1.0, **({"ridge": 0.0} if name == "actmat" else {}))
    if name in ("iso_c", "iso_cts"):
        found, wanted = torch.linalg.svdvals(merged - base), torch.linalg.svdvals(x - base)
        torch.testing.assert_close(found, wanted.mean().expand(20), rtol=0, atol=1e-12)
    else:
        torch.testing.assert_close(merged, x, rtol=0, atol=1e-11)


def test_wudi_of_one_model_is_that_model():
    """Start and minimum are both the model's own difference, whatever the filter; ridge shrinks it."""
    base, x = normal(20, 30), normal(20, 30, seed=1)
    torch.testing.assert_close(merge("wudi", [x], base), x, rtol=0, atol=1e-12)
    shrunk = merge("wudi", [x], base, solver="ridge", ridge=1.0)
    assert 0.01 < float((shrunk - base).norm() / (x - base).norm()) < 0.9


def test_wudi_keeps_what_the_models_do_not_share():
    """Models whose rows lie in orthogonal spaces do not disturb each other: the result is the sum of their differences."""
    q, base = orthonormal(30, 24), normal(6, 30)
    deltas = [normal(6, 8, seed=i) @ q[:, 8 * i : 8 * i + 8].mT for i in range(3)]
    for given in ({"keep": 1.0}, {"keep": 0.3}, {"solver": "ridge", "ridge": 1e-12}, {"keep": 1.0, "time": 1e9}):
        merged = merge("wudi", [base + d for d in deltas], base, **given)
        torch.testing.assert_close(merged, base + sum(deltas), rtol=0, atol=1e-8)


def test_tsv_of_orthogonal_models_is_their_sum():
    """Models with orthogonal rows and columns and few directions are added up unchanged; equal ones count once."""
    u, v, base = orthonormal(30, 9), orthonormal(40, 9, 1), normal(30, 40)
    deltas = [u[:, 3 * i : 3 * i + 3] @ normal(3, 3, seed=i) @ v[:, 3 * i : 3 * i + 3].mT for i in range(3)]
    models = [base + d for d in deltas]
    torch.testing.assert_close(merge("tsv_m", models, base), base + sum(deltas), rtol=0, atol=1e-11)
    torch.testing.assert_close(merge("tsv_m", models[:1] * 3, base), models[0], rtol=0, atol=1e-11)


def test_iso_c_keeps_the_directions_of_a_low_rank_sum():
    """A sum of rank 4 gets four equal singular values with the old sum, not all that the shape allows."""
    base, delta = normal(30, 40), normal(30, 4, seed=1) @ normal(4, 40, seed=2)
    found = torch.linalg.svdvals(merge("iso_c", [base + delta], base) - base)
    old = torch.linalg.svdvals(delta)
    torch.testing.assert_close(found[:4], old[:4].mean().expand(4), rtol=0, atol=1e-12)
    assert float(found[4]) < 1e-12


def test_cart_is_the_mean_at_rank_0_and_the_sum_of_all_that_is_centred_at_rank_1():
    """What is centred sums to zero, so that rank 1 gives the mean again, and only a low rank gives more."""
    models = [normal(20, 30, seed=i) for i in range(3)]
    mean = sum(models) / 3
    for rank in (0.0, 1.0):
        torch.testing.assert_close(merge("cart", models, mean, rank=rank), mean, rtol=0, atol=1e-12)
    assert float((merge("cart", models, mean) - mean).norm()) > 0.1


def test_cart_refuses_weights_that_sum_to_zero():
    """The mean divides by their sum; the sentence says what to change."""
    with pytest.raises(ValueError, match="change a weight"):
        bind(registry()["cart"], values("cart", {"weight": (1.0, -1.0)}, 2))


def test_ace_refuses_a_ridge_of_zero():
    """Without a ridge the estimates of few rows have no inverse; the sentence says the paper's."""
    with pytest.raises(ValueError, match="1e-5"):
        bind(registry()["ace"], values("ace", {"ridge": 0.0}, 2))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_ortho_merge_of_rotations_is_a_rotation(shape):
    """Models that are the base turned: the result is the base turned, by the mean angle if they turn one plane."""
    base = normal(*shape)
    n, left = min(shape), shape[0] < shape[1]
    plane = orthonormal(n, 2, 3)

    def turned(angle: float) -> Tensor:
        j = plane[:, :1] @ plane[:, 1:].mT
        r = turn(math.tan(angle / 2) * (j - j.mT))
        return base + (r @ base if left else base @ r)

    # the mean is one of Cayley forms, tan(angle / 2)
    middle = 2 * math.atan((math.tan(0.1) + math.tan(0.2)) / 2)
    merged = merge("ortho_merge", [turned(0.2), turned(0.4)], base)
    torch.testing.assert_close(merged, turned(middle), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.linalg.svdvals(merged), torch.linalg.svdvals(base), rtol=0, atol=1e-9)


def test_ortho_merge_of_the_opposite_is_all_rest():
    """-base has no Cayley form: its change is averaged as numbers."""
    base, x = normal(20, 30), normal(20, 30, seed=1)
    torch.testing.assert_close(merge("ortho_merge", [-base], base), -base, rtol=0, atol=1e-12)
    assert merge("ortho_merge", [-base, x, base * 0], base).isfinite().all()


@pytest.mark.parametrize("name", ORACLES)
def test_order_of_models_does_not_matter(name):
    """Models listed in another order, each with its weight, give the same tensor up to rounding."""
    base, *models = (normal(20, 30, seed=i) for i in range(4))
    weights = (0.5, 1.0, 0.7)
    first = merge(name, models, base, weight=weights)
    second = merge(name, models[::-1], base, weight=weights[::-1])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in ORACLES if name not in ("ace", "ortho_merge")])
def test_turning_everything_turns_the_result(name):
    """Singular directions have no preferred axes: orthogonal changes of input and output space commute with the merge."""
    base, *models = (normal(12, 18, seed=i) for i in range(4))
    left, other = orthonormal(12, 12, 8), orthonormal(18, 18, 9)
    merged = merge(name, models, base)
    turned = merge(name, [left @ x @ other for x in models], left @ base @ other)
    torch.testing.assert_close(turned, left @ merged @ other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_a_stack_is_merged_matrix_by_matrix(name):
    """A tensor of experts is, along its first axis, the merges of its matrices, to the bit."""
    base, *models = (normal(4, 12, 18, seed=i) for i in range(4))
    merged = merge(name, models, base)
    for i in range(4):
        assert torch.equal(merged[i], merge(name, [x[i] for x in models], base[i]))


@pytest.mark.parametrize("name", ORACLES)
def test_no_more_than_a_matrix_is_held(name):
    """Of a stack of experts the method is given one matrix at a time, of an embedding some rows, of a vector all."""
    sizes = {
        ("model.layers.0.mlp.experts.down_proj", (5, 12, 18)): 12 * 18,
        ("model.layers.0.mlp.up_proj.weight", (12, 18)): 12 * 18,
        ("model.embed_tokens.weight", (4000, 100)): 1 << 18,
        ("model.norm.weight", (300_000,)): 300_000,
    }
    for (tensor, shape), most in sizes.items():
        seen = []

        def spy(piece, p, seen=seen):
            seen.append(piece.models[0].numel())
            return registry()[name](piece, p)

        method = replace(registry()[name], function=spy)
        base, model = normal(*shape).float(), normal(*shape, seed=1).float()
        params = bind(method, values(name, {}, 1))
        merge_tensors(method, params, [model], None if method.base == "ignored" else base, name=tensor)
        assert sum(seen) == base.numel()
        assert max(seen) <= most


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(
    "tensor",
    ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight", "transformer.wte.weight"],
)
def test_tables_and_vectors_are_averaged(name, tensor):
    """Embeddings, heads, routers, vectors and kernels are the plain mean at the defaults."""
    base, *models = (normal(6, 8, seed=i) for i in range(4))
    mean = sum(models) / 3
    torch.testing.assert_close(merge(name, models, base, tensor), mean, rtol=0, atol=1e-12)
    for shape in ((48,), (1, 48), (48, 1), (2, 3, 2, 4)):
        rows = [x.reshape(shape) for x in (base, *models)]
        torch.testing.assert_close(merge(name, rows[1:], rows[0]), mean.reshape(shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_unchanged_models_give_the_base(name):
    """Three models equal to the base give it to the bit, and one that is unchanged among others does no harm."""
    base, x = normal(20, 30).float(), normal(20, 30, seed=1).float()
    assert torch.equal(merge(name, [base] * 3, base), base)
    assert merge(name, [x, base, x * 1.1], base).isfinite().all()


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_zero_leaves_a_model_out(name):
    """Beside another model, one with weight 0 changes nothing but how many models share the room."""
    base, x, y = (normal(20, 30, seed=i) for i in range(3))
    rank_2 = [base + low_rank(d - base, 2) for d in (x, y)]  # little enough for every method's share of directions
    alone = merge(name, rank_2[:1], base, weight=1.0, **({"rank": 1.0} if name == "cart" else {}))
    both = merge(name, rank_2, base, weight=(1.0, 0.0), **({"rank": 1.0} if name == "cart" else {}))
    torch.testing.assert_close(alone, both, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ORACLES)
def test_very_wide_and_very_tall(name):
    """A side of 20,000 costs what the other side allows, whichever it is."""
    for shape in ((6, 20_000), (20_000, 6)):
        base, *models = (normal(*shape, seed=i).float() for i in range(4))
        assert merge(name, models, base).isfinite().all()


def test_bytes_do_not_depend_on_threads(tmp_path: Path):
    """Merged with one thread or three, into the same bytes: each matrix is decomposed by one thread."""
    base, *models = (make.model(tmp_path / str(i), i, layers=2, hidden=64) for i in range(3))
    for name in ORACLES:
        recipe = make.recipe(name, *models, **({} if name == "cart" else {"base": base}), dtype="float32")
        found = []
        for threads in (1, 3):
            plait.merge(recipe).save(tmp_path / f"{name}-{threads}", threads=threads)
            found.append(make.hashes(tmp_path / f"{name}-{threads}"))
        assert found[0] == found[1], name


# -- calibrations


def test_star_keeps_the_nuclear_norm_and_few_directions():
    """Half of 4 + 3 + 2 + 1 is reached by two of them, which grow to a sum of 10; everything is kept at 1."""
    x = spectrum(9, 12, [4.0, 3.0, 2.0, 1.0])
    s = torch.linalg.svdvals(star(x, 0.5))
    torch.testing.assert_close(s[:3], torch.tensor([40 / 7, 30 / 7, 0], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(star(x, 1.0), x, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(star(x, 0.0)) == 1


def test_subspace_boost_raises_the_small_directions():
    """Of 4 + 3 + 2 + 1, three quarters are reached at the third; at 0 all become the largest; zero directions stay zero."""
    x = spectrum(9, 12, [4.0, 3.0, 2.0, 1.0])
    for beta, wanted in ((0.75, [4, 3, 2, 2, 0]), (0.0, [4, 4, 4, 4, 0]), (1.0, [4, 3, 2, 1, 0])):
        s = torch.linalg.svdvals(subspace_boost(x, beta))
        torch.testing.assert_close(s[:5], torch.tensor(wanted).double(), rtol=0, atol=1e-12)


def test_svc_halves_what_two_models_share():
    """The sum of two equal deltas comes back as one; deltas without common directions grow to at most 1 / alpha."""
    d = normal(12, 18)
    torch.testing.assert_close(svc(2 * d, [d, d]), d, rtol=0, atol=1e-12)
    torch.testing.assert_close(svc(d, [d]), d, rtol=0, atol=1e-12)
    u, v = orthonormal(12, 2), orthonormal(18, 2, 1)
    apart = [3 * u[:, :1] @ v[:, :1].mT, 2 * u[:, 1:] @ v[:, 1:].mT]
    torch.testing.assert_close(svc(sum(apart), apart, 0.25), sum(apart) * 2 / 1.25, rtol=0, atol=1e-12)


def test_calibrations_keep_zero_and_nan_and_dtype():
    """A zero delta stays zero, a NaN is not hidden, and float32 and bfloat16 come back as such."""
    for dtype in (torch.float32, torch.bfloat16):
        zero, x = torch.zeros(6, 9, dtype=dtype), normal(6, 9).to(dtype)
        for change in (star, subspace_boost, lambda y, x=x: svc(y, [y, x])):
            assert torch.equal(change(zero), zero)
            assert change(x).dtype == dtype
            assert change(zero.index_fill(0, torch.tensor(2), math.nan)).isnan().any()
