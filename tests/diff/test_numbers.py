"""The numbers of a comparison, against plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import make
import plait
from plait.diff import compare
from plait.diff.facts import facts
from plait.diff.spectrum import Gathering, Spectrum
from plait.errors import ModelError


@pytest.fixture
def family(tmp_path: Path) -> list[Path]:
    """A base and two models that change some of its entries, in float32."""
    base = make.tensors(0, hidden=16, vocab=40)
    generator = torch.Generator().manual_seed(9)
    folders = [make.write(tmp_path / "base", base)]
    for name in ("a", "b"):
        moved = {
            key: x + 0.02 * torch.randn(x.shape, generator=generator) * (torch.rand(x.shape, generator=generator) < 0.6)
            for key, x in base.items()
        }
        folders.append(make.write(tmp_path / name, moved))
    return folders


def flat(folder: Path, names: list[str]) -> np.ndarray:
    model = plait.open(folder)
    return np.concatenate([model.read(name).double().numpy().ravel() for name in names])


@pytest.mark.parametrize("part", ["all", "layer", "kind", "tensor"])
def test_numbers(family: list[Path], part: str) -> None:
    """Change, cosine, unchanged, largest, conflict of a tensor, a kind, a layer and the whole are those of their definitions."""
    data = facts(compare(*family))
    names = list(plait.open(family[0]).specs)
    chosen = {
        "all": names,
        "layer": [n for n in names if ".layers.1." in n],
        "kind": [n for n in names if "_proj" in n and ".mlp." in n],
        "tensor": ["model.layers.0.self_attn.q_proj.weight"],
    }[part]
    found = {
        "all": data["total"],
        "layer": data["layers"][1],
        "kind": next(kind for kind in data["kinds"] if kind["kind"] == "mlp"),
        "tensor": next(t for t in data["tensors"] if t["name"] == chosen[0]),
    }[part]
    x, *others = (flat(folder, chosen) for folder in family)
    deltas = [(y.astype(np.float32) - x.astype(np.float32)).astype(float) for y in others]
    norm = np.linalg.norm
    assert found["change"] == pytest.approx([norm(d) / norm(x) for d in deltas], rel=1e-5)
    assert found["cosine"] == pytest.approx([x @ y / norm(x) / norm(y) for y in others], rel=1e-5)
    assert found["unchanged"] == pytest.approx([np.mean(x == y) for y in others], rel=1e-5)
    assert found["largest"] == pytest.approx([np.abs(d).max() for d in deltas], rel=1e-5)
    both = (deltas[0] != 0) & (deltas[1] != 0)
    conflict = both & (np.sign(deltas[0]) != np.sign(deltas[1]))
    assert found["conflict"] == pytest.approx(conflict.sum() / both.sum(), rel=1e-5)
    if part == "all":
        pair = next(p for p in data["pairs"] if p["models"] == ["a", "b"])
        assert pair["distance"] == pytest.approx(norm(deltas[0] - deltas[1]) / norm(x), rel=1e-5)
        assert pair["delta_cosine"] == pytest.approx(
            deltas[0] @ deltas[1] / norm(deltas[0]) / norm(deltas[1]), rel=1e-4
        )
        assert pair["sign_agreement"] == pytest.approx(1 - conflict.sum() / both.sum(), rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (300, 60), (60, 300)])
def test_rank_exact(shape: tuple[int, int]) -> None:
    """The effective rank of a matrix with a side of at most 256 is the one of its singular values."""
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = gathered(delta)
    s = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    assert not found.sketched
    assert found.effective == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-6)
    assert found.directions == min(shape)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_rank_sketched(decay: float) -> None:
    """The effective rank of a larger matrix is estimated within 5 %, however its singular values fall."""
    generator = torch.Generator().manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(n, 400, generator=generator)).Q for n in (900, 500))
    s = torch.arange(1, 401) ** -decay
    found = gathered((u * s) @ v.mT)
    assert found.sketched
    assert found.effective == pytest.approx(float((s**2).sum() ** 2 / (s**4).sum()), rel=0.05)


def gathered(delta: torch.Tensor) -> Spectrum:
    gathering = Gathering(*delta.shape)
    for row in range(0, len(delta), 37):
        gathering.add(row, delta[row : row + 37])
    found = gathering.spectrum(float(delta.double().square().sum()), 1.0, "F32")
    assert found
    return found


def test_same_numbers(family: list[Path]) -> None:
    """The numbers do not depend on the number of threads."""
    one, two = (facts(compare(*family, threads=threads)) for threads in (1, 3))
    assert one == two


def test_recipe(family: list[Path], tmp_path: Path) -> None:
    """A recipe is compared like the model that it would write, and writes nothing."""
    recipe = make.recipe("ties", *family[1:], base=family[0], dtype="bfloat16")
    recipe["parameters"] |= {"density": 0.5}
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(recipe))
    found = facts(compare(family[0], path))
    assert not (tmp_path / "out").exists()
    plait.merge(path).save(tmp_path / "out")
    written = facts(compare(family[0], tmp_path / "out"))
    for key in ("total", "kinds", "layers", "tensors"):
        assert found[key] == written[key]


def test_not_finite(family: list[Path]) -> None:
    """A tensor with NaN is named and counted in no sum; the JSON holds numbers only."""
    broken = {name: plait.open(family[1]).read(name) for name in plait.open(family[1]).specs}
    broken["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    make.write(family[1], broken)
    data = facts(compare(*family))
    assert data["compared"]["not_finite"] == ["model.layers.1.mlp.up_proj.weight"]
    assert data["verdicts"][0]["mark"] == "bad"
    assert "NaN" in data["verdicts"][0]["says"]
    json.dumps(data, allow_nan=False)
    assert all(x is not None for x in data["total"]["change"])


def test_odd_shapes() -> None:
    """Scalars, empty tensors, integers and zeros have numbers, or are set aside with their name."""
    from plait.arch import infer
    from plait.checkpoint import InMemory
    from plait.diff.sides import Side

    tensors = {
        "scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "zero": torch.zeros(3),
        "ids": torch.arange(4),
        "cube": torch.randn(2, 3, 4),
    }
    sides = []
    for name, scale in (("a", 1.0), ("b", 1.5)):
        held = InMemory({n: x * scale if x.is_floating_point() else x for n, x in tensors.items()})
        sides.append(Side(name, name, held, infer(held.specs, {}), None))
    data = facts(compare(*sides))
    changes = {t["name"]: t["change"] for t in data["tensors"]}
    assert changes == {"scale": [0.5], "empty": [0.0], "zero": [0.0], "cube": [pytest.approx(0.5)]}
    assert data["compared"]["not_numbers"] == ["ids"]


def test_one_alone(family: list[Path]) -> None:
    """One model cannot be compared."""
    with pytest.raises(ModelError, match="nothing to compare it with") as caught:
        compare(family[0])
    assert (caught.value.found, caught.value.do) == ("1", "name another model or recipe")
