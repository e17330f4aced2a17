"""Bricks before and after a method: what each computes, against plain numpy, and that they compose."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import make
import plait
from methods import oracles_elementwise, oracles_spectral
from plait import fit
from plait.brick import Woven, around
from plait.bricks import bricks
from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry
from plait.ops.random import uniform
from plait.recipe import load
from plait.testing.methods import check

WEIGHTS = [0.7, 0.5, 1.1]
NAME = "model.layers.1.mlp.up_proj.weight"


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A base and three models near it, float64."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g, dtype=torch.float64)
    return base, [base + 0.1 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in WEIGHTS]


def defaults(brick, models: int, **given):
    """The brick's parameters at their defaults, with one value for each model where it wants that."""
    values = {p.name: given.get(p.name, p.default) for p in brick.parameters}
    return bind(
        brick, {p.name: (values[p.name],) * models if p.per_model else values[p.name] for p in brick.parameters}
    )


def summed(pre=(), post=(), base=None, models=(), method="task_arithmetic", piece=1 << 18, depth=0.0, **given):
    """The models merged with bricks (name -> parameters) around a method; weights as above."""
    known = bricks()
    before, after = [known[name] for name in dict(pre)], [known[name] for name in dict(post)]
    inner = registry()[method]
    values = {p.name: p.default for p in inner.parameters if not p.per_model} | given
    values |= {p.name: (p.default,) * len(models) for p in inner.parameters if p.per_model}
    values |= {"weight": tuple(WEIGHTS[: len(models)])} if any(p.name == "weight" for p in inner.parameters) else {}
    params = Woven(
        bind(inner, values),
        tuple(defaults(b, len(models), **dict(pre)[b.name]) for b in before),
        tuple(defaults(b, len(models), **dict(post)[b.name]) for b in after),
    )
    return merge_tensors(
        around(inner, before, after), params, models, base, name=NAME, seed=3, piece=piece, depth=depth
    )


def wanted(base, models, change_one=lambda i, d: d, change_all=lambda m, ds: m):
    """The same by hand: task arithmetic with each delta changed before, and the sum after."""
    b = base.numpy()
    deltas = [change_one(i, x.numpy() - b) for i, x in enumerate(models)]
    return b + change_all(sum(w * d for w, d in zip(WEIGHTS, deltas, strict=True)), deltas)


def close(found: Tensor, oracle) -> bool:
    return bool(np.abs(found.numpy() - oracle).max() <= 1e-12 * np.abs(oracle).max())


def test_trim_keeps_the_largest():
    """trim keeps floor(density * entries) changes of each model, the largest."""
    base, models = drawn((40, 30))

    def kept(_, d):
        cut = np.sort(np.abs(d).astype(np.float32).ravel())[-int(0.3 * d.size)]
        return np.where(np.abs(d).astype(np.float32) >= cut, d, 0)

    found = summed({"trim": {"density": 0.3}}, (), base, models)
    assert close(found, wanted(base, models, kept))


@pytest.mark.parametrize("by", ["density", "l1", None])
def test_drop_is_the_dare_of_the_paper(by):
    """drop keeps an entry when its random number is below the density, and enlarges by 1 / density, L1 norm or not at all."""
    base, models = drawn((50, 20))

    def kept(i, d):
        mask = uniform(3, NAME, i, 0, d.size).numpy().reshape(d.shape) < np.float32(0.4)
        factor = {"density": 1 / 0.4, "l1": np.abs(d).sum() / np.abs(d * mask).sum(), None: 1.0}[by]
        return d * mask * factor

    given = {"density": 0.4, "rescale": by is not None, "rescale_by": by or "l1"}
    assert close(summed({"drop": given}, (), base, models), wanted(base, models, kept))


def test_star_agrees_with_its_oracle():
    """star truncates and rescales each model's change by its singular values."""
    base, models = drawn((24, 17))
    found = summed({"star": {"eta": 0.6}}, (), base, models)
    assert close(found, wanted(base, models, lambda _, d: oracles_spectral.star(d, 0.6)))


@pytest.mark.parametrize(
    ("name", "given", "oracle"),
    [
        ("scale", {"factor": 0.3}, lambda m, ds: 0.3 * m),
        ("norm_guard", {}, lambda m, ds: oracles_elementwise.norm_guard(m, ds, [1, 1, 1], 1.0)),
        ("norm_guard", {"strength": 0.4}, lambda m, ds: oracles_elementwise.norm_guard(m, ds, [1, 1, 1], 0.4)),
        ("subspace_boost", {"beta": 0.2}, lambda m, ds: oracles_spectral.subspace_boost(m, 0.2)),
        ("svc", {}, lambda m, ds: oracles_spectral.svc(m, ds, 0.1)),
    ],
)
def test_bricks_after_a_method_agree_with_their_oracles(name, given, oracle):
    """A brick after the method changes the merged difference as its paper says."""
    base, models = drawn((24, 17))
    assert close(summed((), {name: given}, base, models), wanted(base, models, change_all=oracle))


@pytest.mark.parametrize("layer", [0, 1, 5, 7])
def test_lines_is_a_straight_line_over_the_layers(layer):
    """lines gives layer l of 8 the factor alpha + beta * l / 7."""
    base, models = drawn((6, 5))
    found = summed((), {"lines": {"alpha": 0.3, "beta": 1.4}}, base, models, depth=layer / 7)
    factor = oracles_elementwise.lines(layer, 8, 0.3, 1.4)
    assert close(found, wanted(base, models, change_all=lambda m, _: factor * m))


def test_they_follow_each_other():
    """Several bricks are applied in the order in which they are written."""
    base, models = drawn((24, 17))
    found = summed({"star": {"eta": 0.7}}, {"svc": {}, "scale": {"factor": 0.5}, "norm_guard": {}}, base, models)

    def after(m, ds):
        return oracles_elementwise.norm_guard(0.5 * oracles_spectral.svc(m, ds, 0.1), ds, [1, 1, 1], 1.0)

    assert close(found, wanted(base, models, lambda _, d: oracles_spectral.star(d, 0.7), after))


def test_a_method_that_sees_weights_gets_them():
    """Around slerp and linear, which merge weights, bricks work on differences to the base all the same."""
    base, models = drawn((24, 17))
    b, x = base.numpy(), [m.numpy() for m in models]
    found = summed((), {"scale": {"factor": 0.5}}, base, models[:1], "slerp", t=0.3)
    plain = merge_tensors(registry()["slerp"], registry()["slerp"].params(t=0.3), models[:1], base)
    assert close(found, b + 0.5 * (plain.numpy() - b))
    found = summed((), {"scale": {"factor": 0.5}}, base, models, "linear")
    mean = sum(w * m for w, m in zip(WEIGHTS, x, strict=True)) / sum(WEIGHTS)
    assert close(found, b + 0.5 * (mean - b))


SHAPES = [(), (1,), (70,), (1, 9), (300, 517), (3, 40, 30), (0, 4)]
CHANGING = {"scale": {"factor": 0.5}}


@pytest.mark.parametrize("name", sorted(bricks()))
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della", "slerp", "tsv_m", "nuslerp"])
def test_pieces_do_not_matter(name, method):
    """Around methods of each unit a brick gives the same bits for pieces of any size, finite, of the shape of the inputs."""
    count = 1 if method == "slerp" else 2 if method == "nuslerp" else 3
    given = {"t": 0.3} if method == "slerp" else {}
    for shape in SHAPES if method == "task_arithmetic" else [(300, 257), (70,)]:
        base, models = drawn(shape)
        base, models = base.float(), [m.float() for m in models[:count]]
        before = [base.clone(), *(m.clone() for m in models)]
        brick = {name: CHANGING.get(name, {})}
        around_it = {"pre": brick} if bricks()[name].at == "pre" else {"post": brick}
        whole = summed(base=base, models=models, method=method, **around_it, **given)
        cut = summed(base=base, models=models, method=method, piece=1 << 12, **around_it, **given)
        assert whole.shape == base.shape
        assert torch.equal(whole, cut), shape
        assert bool(torch.isfinite(whole).all())
        assert all(torch.equal(x, y) for x, y in zip(before, [base, *models], strict=True))


@pytest.mark.parametrize("brick", bricks().values(), ids=lambda b: b.name)
def test_every_brick_keeps_the_contract(brick):
    """Each keeps the laws of methods around a mean: shapes, dtypes, pieces, no change, NaN, a page and a paper; one file each."""
    assert check(brick) == []
    assert inspect.getmodule(brick.function).__name__ == f"plait.bricks.{brick.name}"


def test_a_brick_that_breaks_the_contract_is_found(tmp_path):
    """A brick of a user's file is loaded and checked like a method: one that depends on the piece is told."""
    path = tmp_path / "whiten.py"
    path.write_text(
        """Divide by the largest entry.

Reference: Nobody, Nothing, https://example.org
""".join(['"""', '"""\n'])
        + "from dataclasses import dataclass\nfrom plait.brick import brick\n"
        "@dataclass(frozen=True)\nclass Params:\n    pass\n"
        "@brick(Params, at='post')\ndef whiten(piece, p):\n    return piece.merged / piece.merged.abs().max().clamp(min=1e-9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "plait", "methods", "--check", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "whiten: breaks" in done.stdout
    assert "pieces" in done.stdout


def test_a_model_has_values_of_its_own_for_a_brick(tmp_path):
    """`trim.density` under a model holds for that model, not for others, whatever stands with the brick."""
    paths = [str(make.model(tmp_path / str(i), i)) for i in range(3)]
    name = "model.layers.1.mlp.up_proj.weight"

    def merged(*parameters, **trim):
        models = [
            {"model": p, "parameters": {"weight": 1.0, **own}} for p, own in zip(paths[1:], parameters, strict=True)
        ]
        recipe = {"merge_method": "task_arithmetic", "base_model": paths[0], "models": models, "pre": [{"trim": trim}]}
        return plait.merge(recipe | {"dtype": "float32"}).read(name)

    base, *models = (plait.open(p).read(name).float() for p in paths)
    wanted = base.clone()
    for model, density in zip(models, (0.1, 0.7), strict=True):
        delta = model - base
        wanted += delta * (delta.abs() >= delta.abs().flatten().sort().values[-int(density * delta.numel())])
    torch.testing.assert_close(merged({"trim.density": 0.1}, {}, density=0.7), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged({"trim.density": 0.1}, {"trim.density": 0.7}), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("where", "name", "value", "words"),
    [
        ("model", "trim.density", 7, "density cannot be 7"),
        ("model", "trim.densty", 0.5, "did you mean 'trim.density'?"),
        ("model", "drop.density", 0.5, "no parameter 'drop.density'"),
        ("recipe", "trim.density", 0.5, "stands under a model"),
        ("model", "scale.factor", 0.5, "no parameter 'scale.factor'"),
    ],
)
def test_what_a_model_says_of_a_brick_is_checked(tmp_path, where, name, value, words):
    """Values out of range, misspelt names, bricks that are not used, and parameters that no single model has, are told."""
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": 1.0, **({name: value} if where == "model" else {})}}],
        "parameters": {name: value} if where == "recipe" else {},
        "pre": ["trim"],
        "post": [{"scale": {"factor": 0.5}}],
    }
    errors, _ = fit.problems(load(recipe))
    assert any(words in str(error) for error in errors), errors


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs"])
def test_bricks_that_do_nothing_leave_every_bit(method):
    """Around a method on differences, bricks at their neutral values change no bit of the result."""
    base, models = drawn((300, 257))
    base, models = base.float(), [m.float() for m in models]
    plain = summed(base=base, models=models, method=method)
    inner = registry()[method]
    values = {p.name: (p.default,) * 3 if p.per_model else p.default for p in inner.parameters}
    values |= {"weight": tuple(WEIGHTS)}
    assert torch.equal(plain, merge_tensors(inner, bind(inner, values), models, base, name=NAME, seed=3))
    neutral = summed({"trim": {"density": 1.0}}, {"scale": {"factor": 1.0}}, base, models, method)
    assert torch.equal(neutral, plain)
