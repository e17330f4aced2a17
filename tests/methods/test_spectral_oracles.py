"""The spectral methods against a slow numpy version of each, on tensors of many shapes and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.oracles_spectral import ORACLES, star, subspace_boost, svc
from methods.settings import values
from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry
from plait.ops import calibrate

NAME = "model.layers.3.mlp.up_proj.weight"

#: parameters to try; a number stands for all models, a tuple is cut to as many as there are
SETTINGS: dict[str, list[dict]] = {
    "ace": [
        {},
        {"threshold": 0.0, "ridge": 1e-2},
        {"threshold": 0.0, "share": 0.0, "lambda": 0.7},
        {"threshold": 1e9, "ridge": 0.3},
    ],
    "actmat": [{}, {"ridge": 0.0}, {"weight": (1.0, 0.2, 3.0), "ridge": 0.1, "lambda": 0.7}, {"ridge": 2.0}],
    "cart": [{}, {"rank": 0.5, "lambda": 0.3, "weight": (1.0, 2.0, -0.5)}, {"rank": 0.0}, {"rank": 1.0}],
    "iso_c": [{}, {"weight": (0.5, 1.0, -0.7), "lambda": 1.5}],
    "iso_cts": [{}, {"common": 0.3, "weight": (0.5, 1.0, -0.7), "lambda": 1.5}, {"common": 0.0}, {"common": 1.0}],
    "ortho_merge": [{}, {"weight": (1.0, 2.0, 0.5), "lambda": 0.3}],
    "tsv_m": [{}, {"weight": (0.5, 1.0, -0.7), "lambda": 0.3}],
    "wudi": [
        {},
        {"weight": (0.5, 1.0, 0.0), "time": 3.0, "keep": 0.3, "lambda": 0.3},
        {"keep": 1.0, "time": 1e6},
        {"solver": "ridge", "ridge": 1e-3},
        {"solver": "ridge", "ridge": 0.1, "weight": (0.5, 1.0, 0.2)},
    ],
}

SHAPES = {"wide": (24, 33), "tall": (33, 24), "square": (20, 20), "very wide": (3, 70), "very tall": (70, 3)}
SHAPES |= {
    "stack": (3, 12, 8),
    "vector": (40,),
    "scalar": (),
    "row": (1, 40),
    "column": (40, 1),
    "kernel": (4, 3, 2, 2),
}
KINDS = [*SHAPES, "low rank", "far apart", "unchanged", "one unchanged", "equal", "opposite"]


def inputs(kind: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The base and three models near it."""
    g = torch.Generator().manual_seed(len(kind))
    shape = SHAPES.get(kind, (24, 33))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    base = normal(*shape)
    d = [normal(*shape) * 0.1 * (i + 1) for i in range(3)]
    if kind == "low rank":
        base = torch.round(base * 64) / 64
        d = [(normal(24, 4) * 8).round() @ (normal(4, 33) * 8).round() / 4096 for _ in range(3)]  # exactly of rank 4
    elif kind == "far apart":
        d = [x * scale for x, scale in zip(d, (1.0, 30.0, 0.02), strict=True)]
    elif kind == "unchanged":
        d = [x * 0 for x in d]
    elif kind == "one unchanged":
        d[1] = d[1] * 0
    elif kind in ("equal", "opposite"):
        base = torch.round(base * 64) / 64
        d[0] = torch.round(d[0] * 64) / 64
        d[1] = d[0] if kind == "equal" else -d[0]
    return [base.to(dtype), *((base + x).to(dtype) for x in d)]


def runs(name: str, given: dict, tensors: list[torch.Tensor]):
    """(merged, the oracle's result, how many models) for one, two and three models."""
    method = registry()[name]
    base = None if method.base == "ignored" else tensors[0]
    for models in (1, 2, 3):
        v, xs = values(name, given, models), tensors[1 : models + 1]
        merged = merge_tensors(method, bind(method, v), xs, base, name=NAME)
        wanted = ORACLES[name]([x.numpy() for x in xs], None if base is None else base.numpy(), v)
        yield merged, wanted, models


CASES = [pytest.param(name, v, id=f"{name}-{i}") for name, settings in SETTINGS.items() for i, v in enumerate(settings)]


def test_every_spectral_method_is_tried():
    """Each oracle of this kind has settings here."""
    assert set(SETTINGS) == set(ORACLES)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_method_agrees_with_its_oracle(name, given):
    """A method gives what the slow version gives.

    An entry mixes all others, so errors are measured against the largest entry. In float64 the decompositions lose what the
    square of the condition costs (some 1e3 in these matrices: 1e-16 * 1e6); in float32 the result is rounded twice, once with
    the base.
    """
    for kind in KINDS:
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2 * 2.0**-24)):
            tensors = inputs(kind, dtype)
            for merged, wanted, models in runs(name, given, tensors):
                assert merged.dtype == dtype
                scale = max(np.abs(wanted).max(), float(tensors[0].abs().max()))
                off = np.abs(merged.double().numpy() - wanted).max() / scale
                assert off <= tolerance, f"{kind}, {dtype}, {models} models: {off}"


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_oracle_is_not_the_identity(name, given):
    """Each setting moves a random tensor, so that agreement with the slow version says something."""
    tensors = inputs("wide", torch.float64)
    for merged, _, models in runs(name, given, tensors):
        assert (merged - tensors[0]).abs().max() > 1e-3
        if models > 1:
            assert all((merged - x).abs().max() > 1e-3 for x in tensors[1:])


@pytest.mark.parametrize("kind", ["wide", "tall", "square", "very wide", "very tall", "far apart"])
def test_calibrations_agree_with_their_oracles(kind):
    """star, subspace_boost and svc give what plain decompositions give, to 1e-10 of the largest entry."""
    base, *models = inputs(kind, torch.float64)
    deltas = [x - base for x in models]
    arrays = [d.numpy() for d in deltas]
    found_and_wanted = [
        *((calibrate.star(deltas[0], eta), star(arrays[0], eta)) for eta in (0.05, 0.4, 0.9, 1.0)),
        *((calibrate.subspace_boost(sum(deltas), b), subspace_boost(sum(arrays), b)) for b in (0.0, 0.01, 0.5, 0.99)),
        *((calibrate.svc(sum(deltas), deltas, a), svc(sum(arrays), arrays, a)) for a in (0.1, 0.5, 2.0)),
    ]
    for found, wanted in found_and_wanted:
        assert np.abs(found.numpy() - wanted).max() <= 1e-10 * np.abs(wanted).max()
        assert found.dtype == torch.float64
