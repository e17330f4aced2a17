"""Every method against a slow numpy version of it, on tensors that are ordinary, and on tensors that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.oracles import ORACLES, importance
from methods.settings import gathered, values
from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry

SEED, NAME = 7, "model.layers.3.mlp.up_proj.weight"

#: parameters to try; a number stands for all models, a tuple is cut to as many as there are
SETTINGS: dict[str, list[dict]] = {
    "arcee_fusion": [{}],
    "breadcrumbs": [
        {},
        {"density": 0.9},
        {"density": (0.5, 0.7, 0.0), "gamma": 0.1, "normalize": True, "rescale": True, "lambda": 0.7},
        {"density": 0.98, "gamma": (0.1, 0.01, 1.0)},
    ],
    "breadcrumbs_ties": [
        {"density": 0.6, "gamma": 0.05},
        {"density": 0.4, "gamma": 0.2, "rescale": True, "normalize": True},
    ],
    "dare_linear": [
        {},
        {"density": (0.5, 0.3, 0.0)},
        {"density": 0.7, "rescale_by": "density", "normalize": True, "lambda": 1.3},
        {"density": 0.5, "rescale": False},
    ],
    "dare_ties": [
        {"density": (0.5, 0.3, 1.0)},
        {"density": 0.7, "rescale_by": "density", "normalize": True, "lambda": 1.3},
    ],
    "della": [
        {},
        {"density": (0.5, 0.3, 0.0)},
        {"density": 0.7, "epsilon": 0.2, "rescale_by": "density", "lambda": 0.8},
        {"density": 0.4, "epsilon": 0.0, "rescale": False, "normalize": False},
    ],
    "della_linear": [
        {"density": (0.5, 0.3, 1.0)},
        {"density": 0.7, "epsilon": (0.1, 0.2, 0.25), "rescale_by": "density"},
    ],
    "karcher": [{}, {"max_iter": 1, "tol": 1e-9}, {"max_iter": 0}, {"max_iter": 50, "tol": 1e-12}],
    "linear": [{}, {"normalize": False}, {"weight": (1.0, -0.4, 0.2)}],
    "model_stock": [{}, {"filter_wise": True}],
    "multislerp": [{}, {"normalize_weights": False, "eps": 1e-3}, {"weight": (1.0, -0.4, 0.3)}],
    "nearswap": [{"t": 0.02}, {"t": 0.0}, {"t": -1.0}, {"t": 100.0}],
    "nuslerp": [
        {},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        {"weight": (1.0, -1.0)},
    ],
    "passthrough": [{}, {"scale": 0.3}],
    "ram": [{}, {"epsilon": 0.05}],
    "ramplus_tl": [{"epsilon": 0.05}, {"r": 0.5, "alpha": 1.5, "epsilon": 0.05}, {"epsilon": 0.0}],
    "sce": [{}, {"select_topk": 0.2}, {"select_topk": 0.0}],
    "slerp": [{"t": 0.3}, {"t": 1.4}, {"t": 0.0}],
    "task_arithmetic": [{}, {"normalize": True, "lambda": 0.4}, {"weight": (1.0, -1.0, 0.0), "normalize": True}],
    "ties": [
        {},
        {"density": (0.5, 0.2, 0.0)},
        {"density": 1e-4},
        {"density": 0.3, "rescale": True, "normalize": False, "lambda": 1.5, "weight": (0.7, -0.3, 0.5)},
    ],
}


def inputs(kind: str) -> list[torch.Tensor]:
    """The base and three models, float32."""
    g = torch.Generator().manual_seed(len(kind))
    shape = {"scalar": (), "single": (1,), "vector": (65,), "row": (1, 40), "column": (40, 1), "stack": (3, 8, 5)}.get(
        kind, (33, 65)
    )
    base = torch.randn(shape, generator=g)
    d = [torch.randn(shape, generator=g) * 0.1 * (i + 1) for i in range(3)]
    if kind == "sparse":
        d = [x * (torch.rand(shape, generator=g) < 0.2) for x in d]
    elif kind == "tiny":
        d = [x * 1e-6 for x in d]
    elif kind == "antipodal":
        base = torch.round(base * 64) / 64
        d[0] = torch.round(d[0] * 64) / 64
        d[1] = -d[0]
    elif kind == "few":  # few different magnitudes, so that every cut goes through equal ones
        base = torch.randint(-8, 9, shape, generator=g) / 8
        d = [torch.randint(-3, 4, shape, generator=g) / 8 for _ in range(3)]
    elif kind == "equal":
        d = [d[0]] * 3
    elif kind == "unchanged":
        d = [x * 0 for x in d]
    tensors = [base, *(base + x for x in d)]
    if kind == "zero":
        tensors[2], tensors[3] = base.clone(), torch.zeros(shape)
    elif kind == "zeros":
        tensors = [x * 0 for x in tensors]
    elif kind == "opposite":
        tensors[2] = -tensors[1]
    elif kind == "bf16":
        tensors = [x.bfloat16().float() for x in tensors]
    return tensors


KINDS = ["random", "sparse", "tiny", "antipodal", "few", "equal", "unchanged", "zero", "zeros", "opposite", "bf16"]
KINDS += ["scalar", "single", "vector", "row", "column", "stack"]


CASES = [pytest.param(name, v, id=f"{name}-{i}") for name, settings in SETTINGS.items() for i, v in enumerate(settings)]


def apart(found: torch.Tensor, wanted: np.ndarray, tensors: list[torch.Tensor]) -> float:
    """The largest difference in units in the last place of the largest of result and inputs, entry by entry."""
    scale = np.abs(wanted)
    for x in tensors:
        scale = np.maximum(scale, np.abs(x.numpy()))
    difference = np.abs(found.double().numpy() - wanted)
    return float((difference / (np.maximum(scale, 1e-30) * torch.finfo(found.dtype).eps)).max(initial=0))


def test_every_method_has_an_oracle():
    """The files of oracles cover plait's own methods, all of them; this file has settings for those of `oracles.py`."""
    own = {name for name, m in registry().items() if m.function.__module__.startswith("plait.methods.")}
    assert own == set(gathered("ORACLES"))
    assert set(ORACLES) == set(SETTINGS)


#: units in the last place that float32 and float64 may be off: a few roundings of inputs, products and sums
FEW = 8
#: in float64, for coefficients that come from angles: an error of eps in a cosine is one of eps / sin^2 in them
ANGLES = 1000


def runs(name: str, given: dict, tensors: list[torch.Tensor]):
    """(merged, oracle's result, models, base or None) for each number of models, with and without base where both are right."""
    method = registry()[name]
    fewest, most = method.inputs
    for models in sorted({max(1, fewest), min(2, most or 2), min(3, most or 3)}):
        for base in {"required": tensors[:1], "ignored": [None], "optional": [tensors[0], None]}[method.base]:
            v, xs = values(name, given, models), tensors[1 : models + 1]
            merged = merge_tensors(method, bind(method, v), xs, base, name=NAME, seed=SEED)
            arrays = [
                x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
                for x in [*xs, *([] if base is None else [base])]
            ]
            v |= {"seed": SEED, "name": NAME}
            yield merged, ORACLES[name](arrays[:models], None if base is None else arrays[-1], v), xs, base


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "given"), [case for case in CASES if case.values[0] != "arcee_fusion"])
def test_method_agrees_with_its_oracle(name, given, dtype):
    """A method gives what the slow version gives, to a few units in the last place, whatever the tensors look like."""
    few = ANGLES if dtype == torch.float64 and name in ("slerp", "nuslerp", "multislerp", "karcher") else FEW
    for kind in KINDS:
        tensors = [x.to(dtype) for x in inputs(kind)]
        if kind in ("random", "vector", "stack"):
            tensors = [x * (1 + 1e-9) for x in tensors]  # digits beyond float32's
        for merged, wanted, xs, _ in runs(name, given, tensors):
            assert apart(merged, wanted, tensors) <= few, f"{kind}, {len(xs)} models"


@pytest.mark.parametrize(("name", "given"), [case for case in CASES if case.values[0] != "arcee_fusion"])
def test_bfloat16_is_rounded_once(name, given):
    """From bfloat16 models comes the slow version's result, rounded once at the end (half a unit, and float32's own rounding)."""
    tensors = [x.bfloat16() for x in inputs("bf16")]
    for merged, wanted, xs, _ in runs(name, given, tensors):
        assert merged.dtype == torch.bfloat16
        assert apart(merged, wanted, [x.float() for x in tensors]) <= 0.5 + 1e-3, f"{len(xs)} models"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_arcee_fusion_agrees_with_its_oracle(dtype):
    """Each entry is the model's or the base's, to the bit, as the slow version says wherever rounding cannot turn the choice.

    A row's divergence is a sum of terms up to 1 that cancel, so its error is a few eps, whatever its size.
    """
    decided = 0
    for kind in KINDS:
        tensors = [x.to(dtype) for x in inputs(kind)]
        for merged, wanted, (x,), base in runs("arcee_fusion", {}, tensors):
            score, threshold = (torch.as_tensor(v) for v in importance(x.numpy(), base.numpy()))
            change = (x - base).abs().double()
            doubt = 8 * torch.finfo(dtype).eps * (change + change.max())
            sure = (score.reshape(x.shape) - threshold).abs() > doubt
            assert torch.equal(merged[sure], torch.as_tensor(wanted, dtype=dtype)[sure]), kind
            assert bool(((merged == x) | (merged == base)).all()), kind
            decided += int((sure & (x != base)).sum())
    assert decided > 10_000


def test_the_oracles_are_not_the_identity():
    """Each setting changes a random tensor, so that agreement with the slow version says something."""
    unmoved = set()
    for name, settings in SETTINGS.items():
        for given in settings:
            tensors = inputs("random")
            if all(torch.equal(merged, tensors[0]) for merged, *_ in runs(name, given, tensors)):
                unmoved.add((name, *given.items()))
    assert unmoved == {
        ("nearswap", ("t", 0.0)),
        ("nearswap", ("t", -1.0)),
        ("sce", ("select_topk", 0.0)),
        ("slerp", ("t", 0.0)),
    }
