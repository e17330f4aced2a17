"""Options of methods that look at the whole model before its first tensor, as their papers do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import make
import plait
from methods.oracles_elementwise import ORACLES
from methods.settings import values


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A base and two models near it, whose tensors changed by different amounts."""
    made = [make.tensors(0, hidden=64, vocab=200)]
    g = torch.Generator().manual_seed(5)
    sizes = {name: 0.01 * (1 + i % 4) for i, name in enumerate(made[0])}
    for _ in range(2):
        made.append({n: x + sizes[n] * torch.randn(x.shape, generator=g) for n, x in made[0].items()})
    return [str(make.write(tmp_path / str(i), tensors)) for i, tensors in enumerate(made)]


def recipe(models, method, **parameters):
    return {
        "merge_method": method,
        "base_model": models[0],
        "models": [{"model": m} for m in models[1:]],
        "parameters": parameters,
    }


def loaded(models):
    """(base, [delta, …]) of the whole models as numpy arrays by name."""
    base, *others = [{n: c.read(n).numpy() for n in c.specs} for c in map(plait.open, models)]
    return base, [{n: x[n] - base[n] for n in base} for x in others]


def test_ties_over_the_model_is_the_papers(models):
    """`over: model` keeps the density share of each model's largest changes over all tensors together."""
    base, deltas = loaded(models)
    kept = []
    for delta in deltas:
        sizes = np.sort(np.concatenate([np.abs(d).ravel() for d in delta.values()]))
        cut = sizes[-int(0.3 * len(sizes))]
        kept.append({n: np.where(np.abs(d) >= cut, d, 0) for n, d in delta.items()})
    merge = plait.merge(recipe(models, "ties", weight=1.0, density=0.3, over="model"))
    for name in base:
        d = np.stack([k[name] for k in kept]).astype(np.float64)
        sign = np.where(d.sum(0) >= 0, 1, -1)
        agrees = np.sign(d) == sign
        wanted = base[name] + np.where(agrees, d, 0).sum(0) / np.maximum(agrees.sum(0), 1)
        assert np.abs(merge.read(name).numpy() - wanted).max() <= 4 * np.spacing(np.float32(np.abs(wanted).max()))
    local = plait.merge(recipe(models, "ties", weight=1.0, density=0.3))
    assert any(not torch.equal(local.read(n), merge.read(n)) for n in base)


@pytest.mark.parametrize("size", [7, 3000])
@pytest.mark.parametrize(
    ("method", "given"), [("metagpt", {"lambda": 0.8}), ("pcb", {"density": 0.3, "clip": 0.02, "lambda": 1.2})]
)
def test_over_the_model_is_the_method_of_one_long_vector(tmp_path, method, given, size):
    """`over: model` gives what the slow version makes of all tensors laid end to end, in models small and not."""
    g = torch.Generator().manual_seed(size)
    shapes = {"model.layers.0.a.weight": (10, 12), "model.layers.1.a.weight": (size,), "model.norm.weight": (3, 2, 5)}
    made = [{n: torch.randn(s, generator=g) for n, s in shapes.items()}]
    for i in range(3):
        made.append({n: x + 0.1 * (i + 1) * torch.randn(x.shape, generator=g) for n, x in made[0].items()})
    paths = []
    for i, tensors in enumerate(made):
        save_file(tensors, tmp_path / f"{i}.safetensors")
        paths.append(str(tmp_path / f"{i}.safetensors"))
    base, *xs = (np.concatenate([x.numpy().ravel() for x in tensors.values()]) for tensors in made)
    wanted = ORACLES[method](xs, base, values(method, given, 3))
    merge = plait.merge(recipe(paths, method, over="model", **given))
    found = np.concatenate([merge.read(n).numpy().ravel() for n in shapes])
    assert np.abs(found - wanted).max() <= 8 * np.spacing(np.float32(np.abs(wanted).max()))
    apart = plait.merge(recipe(paths, method, over="tensor", **given))
    assert any(not torch.equal(apart.read(n), merge.read(n)) for n in shapes)


def test_equal_magnitudes_at_the_cut_of_the_model_are_all_kept(tmp_path):
    """In a model of few entries, too, where they are sorted: which of them come first says nothing over several tensors."""
    base = {"model.layers.0.a.weight": torch.zeros(4), "model.layers.1.a.weight": torch.zeros(2, 3)}
    change = {
        "model.layers.0.a.weight": torch.tensor([2.0, 1, -1, 0]),
        "model.layers.1.a.weight": torch.tensor([[1.0, 0, 3], [0, -1, 0]]),
    }
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for path, tensors in zip(paths, (base, change), strict=True):
        save_file(tensors, path)
    merge = plait.merge(recipe(paths, "ties", weight=1.0, density=0.3, over="model"))
    assert all(torch.equal(merge.read(n), x) for n, x in change.items())


def test_bricks_stand_around_what_looks_at_the_whole_model(models):
    """ties over the model cuts what `pre` bricks leave, and `post` bricks change what it gives, as two merges would."""
    given = {"weight": 1.0, "density": 0.3, "over": "model"}
    plain = plait.merge(recipe(models, "ties", **given))
    after = plait.merge(recipe(models, "ties", **given) | {"post": [{"scale": {"factor": 0.5}}]})
    base, deltas = loaded(models)
    trimmed = [
        {n: np.where(np.abs(d) >= np.sort(np.abs(d), axis=None)[-max(1, d.size // 2)], d, 0) for n, d in delta.items()}
        for delta in deltas
    ]
    kept = []
    for delta in trimmed:
        sizes = np.sort(np.concatenate([np.abs(d).ravel() for d in delta.values()]))
        cut = sizes[-int(0.3 * len(sizes))]
        kept.append({n: np.where(np.abs(d) >= cut, d, 0) for n, d in delta.items()})
    before = plait.merge(recipe(models, "ties", **given) | {"pre": [{"trim": {"density": 0.5}}]})
    for name, b in base.items():
        half = b + 0.5 * (plain.read(name).numpy() - b)
        assert np.abs(after.read(name).numpy() - half).max() <= 4 * np.spacing(np.float32(np.abs(b).max()))
        d = np.stack([k[name] for k in kept]).astype(np.float64)
        sign = np.where(d.sum(0) >= 0, 1, -1)
        agrees = np.sign(d) == sign
        wanted = b + np.where(agrees, d, 0).sum(0) / np.maximum(agrees.sum(0), 1)
        assert np.abs(before.read(name).numpy() - wanted).max() <= 4 * np.spacing(np.float32(np.abs(wanted).max()))


def test_ramplus_over_the_model_is_the_papers(models):
    """`over: model` takes the counts of shared and unique entries from the whole model."""
    base, deltas = loaded(models)
    active = [{n: np.abs(d[n]) > 0.01 for n in base} for d in deltas]
    factors = []
    for i in range(2):
        shared = sum((active[0][n] & active[1][n]).sum() for n in base)
        unique = sum((active[i][n] & ~active[1 - i][n]).sum() for n in base)
        factors.append(1 + 0.5 * min(shared / unique, 9.0))
    merge = plait.merge(recipe(models, "ramplus_tl", r=0.5, alpha=9.0, epsilon=0.01, over="model"))
    for name in base:
        one, two = (a[name] for a in active)
        d = [x[name].astype(np.float64) for x in deltas]
        alone = np.where(one & ~two, d[0] * factors[0], np.where(two & ~one, d[1] * factors[1], 0))
        wanted = base[name] + np.where(one & two, (d[0] + d[1]) / 2, alone)
        assert np.abs(merge.read(name).numpy() - wanted).max() <= 4 * np.spacing(np.float32(np.abs(wanted).max()))


@pytest.mark.parametrize("method", ["ties", "ramplus_tl", "metagpt", "pcb"])
def test_threads_do_not_matter(tmp_path, models, method):
    """A survey of the whole model gives the same bytes for one and two threads."""
    given = {"weight": 1.0, "density": 0.3} if method == "ties" else {}
    for threads in (1, 2):
        plait.merge(recipe(models, method, over="model", **given)).save(tmp_path / f"out{threads}", threads=threads)
    one, two = ((tmp_path / f"out{t}" / "model.safetensors").read_bytes() for t in (1, 2))
    assert one == two


def test_arcee_fusion_samples_from_the_seed():
    """`quantiles: sampled` draws the same million entries each time, near the exact quantiles, and others for another seed."""
    from plait.compute import merge_tensors
    from plait.methods import registry

    method = registry()["arcee_fusion"]
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1100, 1000, generator=g)
    model = base + 0.1 * torch.randn(1100, 1000, generator=g)

    def taken(quantiles: str, seed: int = 0) -> torch.Tensor:
        merged = merge_tensors(method, method.params(quantiles=quantiles), [model], base, seed=seed)
        return merged == model

    exact, first, again, other = taken("exact"), taken("sampled"), taken("sampled"), taken("sampled", 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(int(first.sum()) - int(exact.sum())) < 0.01 * int(exact.sum())
    small = [merge_tensors(method, method.params(quantiles=q), [model[:900]], base[:900]) for q in ("exact", "sampled")]
    assert torch.equal(*small)
