"""What methods do where formulas stop to hold: zero vectors, opposite ones, weights that cancel, one model, tiny changes."""

from __future__ import annotations

import math

import pytest
import torch

from methods.oracles import ORACLES
from methods.settings import values
from plait.compute import Task, alone, merge_tensors
from plait.errors import MergeError
from plait.method import bind
from plait.methods import registry


def merge(name, models, base=None, *, seed=0, tensor="w", dtype=None, **given):
    """Merge vectors or tensors with the method's defaults and `given`; weights are 1 unless given."""
    models = [torch.as_tensor(x) for x in models]
    base = None if base is None else torch.as_tensor(base)
    method = registry()[name]
    params = bind(method, values(name, {"weight": 1.0, **given}, len(models)))
    return merge_tensors(method, params, models, base, name=tensor, seed=seed, dtype=dtype)


def refusal(name, models=2, **given):
    """The sentence with which a method refuses parameters, before any tensor is seen."""
    method = registry()[name]
    try:
        params = bind(method, values(name, {"weight": 1.0, **given}, models))
        if method.first is None and method.gives == "coefficients":
            method(params, None)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{name} accepts {given}")


def test_weights_that_sum_to_zero_are_refused_with_a_mend():
    """linear and multislerp divide by the sum of the weights: 0 is refused before the work, and the sentence says what to set."""
    assert "normalize: false" in refusal("linear", weight=(1.0, -1.0))
    assert "normalize_weights: false" in refusal("multislerp", weight=(1.0, -1.0))
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    assert torch.equal(merge("linear", [x, y], weight=(1.0, -1.0), normalize=False), x - y)
    assert merge("multislerp", [x, y], weight=(1.0, -1.0), normalize_weights=False).isfinite().all()


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear", "breadcrumbs", "della_linear"])
def test_weights_of_differences_that_sum_to_zero_divide_by_one(name):
    """With `normalize`, a sum of weights below 1e-8 divides by 1."""
    base, x, y = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    given = {"weight": (1.0, -1.0), "normalize": True}
    torch.testing.assert_close(merge(name, [x, y], base, **given), base + (x - base) - (y - base), rtol=0, atol=1e-6)


def test_nuslerp_takes_the_middle_where_the_weights_cancel():
    """|w1 + w2| < 1e-6 is t = 1/2."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    half = math.sin(math.pi / 4)
    torch.testing.assert_close(merge("nuslerp", [x, y], weight=(1.0, -1.0)), torch.tensor([half, half]))


def test_slerp_takes_a_zero_vector_as_perpendicular():
    """The angle to a zero vector is 90 degrees."""
    merged = merge("slerp", [[3.0, 4.0]], [0.0, 0.0], t=1 / 3)
    torch.testing.assert_close(merged, torch.tensor([3.0, 4.0]) * math.sin(math.pi / 6))


def test_slerp_and_nuslerp_take_opposite_vectors_in_a_straight_line():
    """There is no arc between x and -x: the result is the weighted sum, whatever the rounding of the cosine."""
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merge("slerp", [-x], x, t=0.25), x * 0.5)
    for flatten in (True, False):
        merged = merge("nuslerp", [x, -x], weight=(3.0, 1.0), nuslerp_flatten=flatten)
        torch.testing.assert_close(merged, x * 0.5)


def test_multislerp_returns_one_model_alone():
    """One model is returned whatever its weight, and from a base to the last place."""
    x, base = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(merge("multislerp", [x], weight=(0.0,)), x)
    assert (merge("multislerp", [x], base, weight=(0.3,)) - x).abs().max() <= 2**-23 * base.abs().max()


def test_multislerp_of_unchanged_models_is_the_base():
    """Three zero differences have no direction: the base is returned, not refused."""
    base = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(merge("multislerp", [base] * 3, base), base)


def test_multislerp_adds_directions_that_cancel():
    """Where sum w_i u_i is zero, the result is sum w_i x_i."""
    x = torch.tensor([3.0, 4.0])
    assert torch.equal(merge("multislerp", [x, -2 * x], weight=(1.0, 1.0)), -x / 2)


def test_karcher_leaves_zero_vectors_out_of_the_direction_only():
    """A zero model has no direction but counts in the mean of the norms; only zero models give zeros; one model is copied."""
    x, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    torch.testing.assert_close(merge("karcher", [x, zero]), x / 2)
    assert torch.equal(merge("karcher", [zero, zero]), zero)
    assert torch.equal(merge("karcher", [x]), x)


def test_karcher_keeps_the_first_of_two_opposite_directions():
    """Opposite directions have no mean: the first is taken, with the mean norm."""
    x = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(merge("karcher", [x, -3 * x]), 2 * x)


def test_karcher_mean_of_a_right_angle():
    """The mean of two perpendicular unit vectors lies at 45 degrees, that of three axes in their middle."""
    torch.testing.assert_close(merge("karcher", [[1.0, 0.0], [0.0, 1.0]]), torch.full((2,), math.sqrt(0.5)))
    torch.testing.assert_close(merge("karcher", list(torch.eye(3))), torch.full((3,), math.sqrt(1 / 3)))


def test_model_stock_moves_as_far_as_the_differences_agree():
    """Perpendicular differences give the base, equal ones the model, those at 60 degrees t = 2/3 of their mean."""
    base = torch.tensor([1.0, 1.0])
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(merge("model_stock", [base + right, base + up], base), base)
    assert torch.equal(merge("model_stock", [base + up, base + up], base), base + up)
    slanted = torch.tensor([0.5, math.sqrt(0.75)])
    merged = merge("model_stock", [base + right, base + slanted], base)
    torch.testing.assert_close(merged, base + 2 / 3 * (right + slanted) / 2)


def test_model_stock_gives_the_base_where_its_factor_has_no_value():
    """Two opposite differences make 1 + c zero: t is 0. Tiny differences (|d_i| |d_j| < 1e-6) have cosines near 0."""
    base, d = torch.zeros(4), torch.tensor([1.0, 2.0, 0.0, 0.0])
    assert torch.equal(merge("model_stock", [d, -d], base), base)
    small = torch.tensor([1e-4, 0.0, 0.0, 0.0])  # the cosine is 1e-8 / 1e-6
    torch.testing.assert_close(merge("model_stock", [small, small], base), small * (0.02 / 1.01))


def test_model_stock_by_rows_takes_a_vector_as_one_row():
    """With `filter_wise` each row of a matrix has its own factor, and a vector is one row."""
    base = torch.zeros(2, 2)
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert torch.equal(merge("model_stock", [x, y], base, filter_wise=True), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    row = merge("model_stock", [x[0], y[1]], base[0], filter_wise=True)
    torch.testing.assert_close(row, merge("model_stock", [x[0], y[1]], base[0]))


def test_nearswap_moves_no_entry_further_than_t():
    """Entries nearer than t are the model's, others move by t towards it."""
    merged = merge("nearswap", [[1.05, 3.0, -3.0, 1.0]], [1.0, 1.0, 1.0, 1.0], t=0.1)
    torch.testing.assert_close(merged, torch.tensor([1.05, 1.1, 0.9, 1.0]))


def test_arcee_fusion_selects_by_exact_quantiles_of_large_tensors():
    """Above a million entries nothing is sampled: the threshold is that of all entries, sorted."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1200, 1000, generator=g, dtype=torch.float64)
    x = base + torch.randn(1200, 1000, generator=g) * torch.rand(1200, 1, generator=g)
    p, q = x.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    score = ((x - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)).float()
    ranked = score.flatten().sort().values
    first, median, third = (ranked[(len(ranked) - 1) * i // 4] for i in (1, 2, 3))
    expected = torch.where(score >= median + 1.5 * (third - first), x, base)
    merged = merge("arcee_fusion", [x], base)
    assert 0.01 < (expected != base).double().mean() < 0.3
    assert torch.equal(merged, expected)


def test_arcee_fusion_keeps_the_dtype():
    """bfloat16 models give a bfloat16 tensor, each entry one of the two models'."""
    g = torch.Generator().manual_seed(0)
    base, x = torch.randn(2, 30, 40, generator=g).bfloat16()
    merged = merge("arcee_fusion", [x], base)
    assert merged.dtype == torch.bfloat16
    assert ((merged == x) | (merged == base)).all()
    assert not torch.equal(merged, x)
    assert not torch.equal(merged, base)


def test_arcee_fusion_takes_the_model_where_little_changed():
    """If three quarters of the entries are unchanged, the threshold is 0 and every changed entry is the model's."""
    base = torch.zeros(4, 8)
    x = base.clone()
    x[1, 3], x[2, 5] = 1.0, -2.0
    assert torch.equal(merge("arcee_fusion", [x], base), x)


def test_ram_averages_over_the_models_that_changed_an_entry():
    """An entry that one model changed is that model's, one that several changed their mean, one that none changed the base's."""
    base = torch.zeros(4)
    merged = merge("ram", [[2.0, 2.0, 1e-6, 0.0], [0.0, 4.0, 0.0, 0.0], [0.0, -3.0, 0.0, 0.0]], base)
    assert torch.equal(merged, torch.tensor([2.0, 1.0, 0.0, 0.0]))


def test_ramplus_enlarges_what_only_one_model_changed():
    """lambda = 1 + r * min(shared / unique, alpha): here model 1 has 1 shared and 2 unique entries, model 2 1 and 0."""
    base, x, y = torch.zeros(3), [2.0, 4.0, 6.0], [0.0, 0.0, 2.0]
    torch.testing.assert_close(merge("ramplus_tl", [x, y], base, r=0.1, alpha=0.8), torch.tensor([2.1, 4.2, 4.0]))
    torch.testing.assert_close(merge("ramplus_tl", [x, y], base, r=0.1, alpha=0.2), torch.tensor([2.04, 4.08, 4.0]))


def test_sce_selects_the_entries_that_vary_most():
    """floor(topk * varying entries) are kept, equal variances in the order of their place; 0 keeps nothing."""
    base = torch.zeros(6)
    x, y = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.5, 5.0]), torch.tensor([1.0, -1.0, -1.0, -1.0, 0.5, 5.0])
    assert torch.equal(merge("sce", [x, y], base, select_topk=0.0), base)
    merged = merge("sce", [x, y], base, select_topk=0.67)  # three entries vary: two are kept
    torch.testing.assert_close(merged, torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0, 0.0]))


def test_sce_weighs_models_by_their_squares_unless_these_are_tiny():
    """Weights are proportional to mean delta^2; where their sum is below 1e-6 they are equal."""
    base = torch.zeros(2)
    torch.testing.assert_close(merge("sce", [[1.0, 1.0], [3.0, 3.0]], base), torch.full((2,), (1 + 27) / 10))
    torch.testing.assert_close(merge("sce", [[1e-4, 1e-4], [3e-4, 3e-4]], base), torch.full((2,), 2e-4))


def test_ties_keeps_equal_magnitudes_in_order():
    """Exactly floor(density * entries) are kept, at least one; among equals the first."""
    base, x = torch.zeros(7), torch.tensor([1.0, -2.0, 2.0, 2.0, 0.0, -1.0, 2.0])
    assert torch.equal(merge("ties", [x], base, density=0.5), torch.tensor([0.0, -2.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    assert torch.equal(merge("ties", [x], base, density=0.01), torch.tensor([0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert torch.equal(merge("ties", [x], base, density=0.0), base)


def test_a_tied_vote_is_positive():
    """A sum of zero elects +."""
    assert torch.equal(merge("ties", [[1.0], [-1.0]], [0.0]), torch.tensor([1.0]))


def test_breadcrumbs_drops_both_ends():
    """The floor(gamma n) largest go, then the floor(density n) largest of the rest stay; with too much gamma fewer go."""
    base, x = torch.zeros(10), torch.tensor([5.0, -9, 1, 8, -2, 7, 3, -6, 4, 0])
    kept = merge("breadcrumbs", [x], base, density=0.5, gamma=0.2)
    assert torch.equal(kept, torch.tensor([5.0, 0, 0, 0, 0, 7, 3, -6, 4, 0]))
    clipped = merge("breadcrumbs", [x], base, density=0.9, gamma=0.5)
    assert torch.equal(clipped, torch.tensor([5.0, 0, 1, 8, -2, 7, 3, -6, 4, 0]))
    assert torch.equal(merge("breadcrumbs", [x[:1]], base[:1], density=0.9), base[:1])  # floor(0.9) = 0 entries


def test_breadcrumbs_without_outliers_is_the_trim_of_ties():
    """With gamma 0 the kept entries are those of ties, equal magnitudes included."""
    g = torch.Generator().manual_seed(0)
    base, x = torch.zeros(50, 20), torch.randint(-5, 6, (50, 20), generator=g).float()
    for density in (0.1, 0.55, 0.9):
        given = {"density": density, "normalize": True}
        assert torch.equal(merge("breadcrumbs_ties", [x], base, gamma=0.0, **given), merge("ties", [x], base, **given))


def test_della_refuses_probabilities_outside_0_and_1_before_the_work():
    """density -+ epsilon must lie between 0 and 1, unless density is 1 (keeps all) or 0 (keeps nothing); the mend is said."""
    for name in ("della", "della_linear"):
        assert "epsilon below 0.1" in refusal(name, density=(1.0, 0.9), epsilon=0.15)
        assert "epsilon below 0.05" in refusal(name, density=0.05, epsilon=0.1)
        assert "0.85" in refusal(name, density=0.85, epsilon=0.15)
        base, x = torch.zeros(3, 4), torch.ones(3, 4)
        assert torch.equal(merge(name, [x], base, density=1.0, epsilon=0.4), x)
        assert torch.equal(merge(name, [x], base, density=0.0, epsilon=0.4), base)


def test_della_keeps_an_entry_with_the_probability_of_its_rank():
    """Over 20,000 rows each rank is kept as often as density - epsilon + 2 epsilon r says (5 standard deviations)."""
    g = torch.Generator().manual_seed(0)
    rows, columns, density, epsilon = 20_000, 9, 0.6, 0.3
    x = torch.stack([torch.randperm(columns, generator=g) + 1.0 for _ in range(rows)])
    kept = merge("della_linear", [x], torch.zeros_like(x), density=density, epsilon=epsilon, rescale=False) != 0
    for rank in range(columns):
        p = density - epsilon + 2 * epsilon * rank / (columns - 1)
        found = kept[x == rank + 1].double().mean()
        assert abs(found - p) < 5 * math.sqrt(p * (1 - p) / rows), rank


@pytest.mark.parametrize("shape", [(1,), (20_000, 1)])
def test_della_keeps_a_row_of_one_entry_with_probability_density(shape):
    """A row of one entry has rank 1/2."""
    x = torch.ones(shape)
    kept = merge("della_linear", [x], x * 0, density=0.3, epsilon=0.2, rescale=False)
    assert kept.isfinite().all()
    if len(kept) > 1:
        assert abs(kept.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 20_000)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_rescaling_by_density_keeps_the_expectation_and_by_l1_the_norm(name):
    """`density` divides by the probability: the mean over 400 seeds is the delta (5 standard errors); `l1` keeps sum |delta|."""
    x = torch.linspace(0.1, 2, 60).reshape(4, 15)
    base = torch.zeros_like(x)
    given = {"density": 0.5, **({"epsilon": 0.2} if name == "della_linear" else {})}
    draws = torch.stack([merge(name, [x], base, seed=s, rescale_by="density", **given) for s in range(400)]).double()
    assert ((draws.mean(0) - x).abs() < 5 * draws.std(0) / 20).all()
    for seed in range(5):
        merged = merge(name, [x], base, seed=seed, rescale_by="l1", **given)
        torch.testing.assert_close(merged.sum(), x.sum())
        assert (merged == 0).any()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_is_dropped_depends_on_seed_tensor_and_model(name):
    """Another seed, another tensor name or another place in the recipe drops other entries; the same ones the same."""
    x = torch.ones(30, 40)

    def kept(seed=0, tensor="w", place=0):
        weights = tuple(float(i == place) for i in range(3))
        return merge(name, [x] * 3, x * 0, seed=seed, tensor=tensor, weight=weights, density=0.5, rescale=False) != 0

    first = kept()
    assert torch.equal(first, kept())
    for other in (kept(seed=1), kept(tensor="v"), kept(place=2)):
        agree = (first == other).double().mean()  # 1/2 for independent halves; 0.5 +- 5 * 0.5 / sqrt(1200)
        assert abs(agree - 0.5) < 0.073


@pytest.mark.parametrize("name", [name for name, method in registry().items() if method.inputs[0] == 0])
def test_only_the_base_is_the_base(name):
    """Where a method needs no model, the base alone is returned to the bit."""
    base = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(merge(name, [], base), base)


WEIGHTED = [name for name, m in registry().items() if any(p.name == "weight" for p in m.parameters)]


@pytest.mark.parametrize("weight", [(0.0, 0.0, 0.0), (1.0, -1.0, 0.0), (1e-9, -1e-9, 0.0), (1e-30, 1e-30, 1e-30)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_that_vanish_or_cancel_give_numbers_or_are_refused(name, weight):
    """Weights of 0, of a sum of 0, and tiny ones give a finite tensor, are below the parameter's bound, or refused."""
    method = registry()[name]
    (bound,) = (p.low for p in method.parameters if p.name == "weight")
    if bound is not None and min(weight) < bound:
        assert bound == 0  # recipes with such a weight are refused
        return
    for shape in ((), (0, 4), (1, 9), (9, 1), (8, 12), (2, 4, 3)):
        tensors = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
        tensors[2] = 2 * tensors[0] - tensors[1]  # opposite differences
        models = list(tensors[1 : 1 + (method.inputs[1] or 3)])
        given = {"weight": weight, "density": 0.5}
        try:
            merged = merge(name, models, None if method.base == "ignored" else tensors[0], **given)
        except ValueError as error:
            assert "sum to 0" in str(error)  # noqa: PT017
            continue
        assert merged.shape == shape
        assert merged.isfinite().all()


@pytest.mark.parametrize("name", registry())
def test_nan_stops_the_merge(name):
    """A NaN in a model ends the merge with an error that names the tensor and the model."""
    method = registry()[name]
    base, *models = torch.randn(4, 20, 30, generator=torch.Generator().manual_seed(0))
    models = models[: max(1, min(2, method.inputs[1] or 2))]
    models[-1][3, 4] = math.nan
    task = Task(
        name="model.norm.weight",
        shape=(20, 30),
        dtype="F32",
        method=method,
        params=bind(method, values(name, {"t": 0.5}, len(models))),
        models=[_reader(x) for x in models],
        base=None if method.base == "ignored" else _reader(base),
        sources=[*([] if method.base == "ignored" else ["the base"]), *(f"model {i + 1}" for i in range(len(models)))],
    )
    with pytest.raises(MergeError, match=r"model\.norm\.weight") as caught:
        list(alone(task).run())
    assert f"model {len(models)}" in str(caught.value)


def _reader(x):
    return lambda rows: x if rows is None else x[rows[0] : rows[1]]


@pytest.mark.parametrize("name", ORACLES)  # others may leave large matrices to LAPACK
def test_threads_do_not_change_a_bit(name):
    """With one of torch's threads or with three, on long vectors and rows, the result is the same, to float64's last bit."""
    method, before = registry()[name], torch.get_num_threads()
    given = {"t": 0.5, "density": 0.5, "select_topk": 0.5, "rescale": True, "weight": (0.5, 0.3, 0.4)}
    switches = [
        {},
        {"filter_wise": True},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ]
    for seed, shape in enumerate([(90_000,), (40_001,), (70_000,), (3, 40_000)]):
        g = torch.Generator().manual_seed(seed)
        scales = 10.0 ** torch.arange(-3, 4).repeat(math.prod(shape))[: math.prod(shape)].reshape(shape)
        base, *models = (torch.randn(shape, generator=g).double() * scales for _ in range(4))
        models, b = models[: method.inputs[1] or 3], None if method.base == "ignored" else base
        for switch in (s for s in switches if s.keys() <= {p.name for p in method.parameters}):
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                try:
                    results.append(merge(name, models, b, **given, **switch))
                finally:
                    torch.set_num_threads(before)
            assert torch.equal(*results), (shape, switch)
