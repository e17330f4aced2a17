"""The kernels in C against the PyTorch code that runs where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.settings import values
from plait import kernels
from plait.compute import merge_tensors
from plait.kernels import fused
from plait.method import bind
from plait.methods import registry
from plait.ops.pieces import BLOCK

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="the kernels are not compiled on this machine")

SHAPES = [(), (1,), (5,), (961,), (37, 1021), (300, 700)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Random numbers with zeros of both signs, repeated magnitudes and numbers too small for the dtype among them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    flat = x.reshape(-1)
    flat[::7], flat[3::11], flat[5::13], flat[6::17] = 0.0, -0.0, 0.5, 1e-41
    return x.to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def without(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any]) -> Any:
    """What the function gives where no kernel is compiled."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "library", lambda: None)
        return function()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_widen_and_narrow(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Reading, subtracting, adding and rounding give PyTorch's bits for every dtype."""
    x, base = noise(shape, 1, dtype), noise(shape, 2)
    assert same(kernels.widen(x), x.float())
    assert same(kernels.widen(x, base), x.float() - base)
    y = noise(shape, 3, scale=100)
    for added in (None, base):
        written, finite = kernels.narrow(y, added, dtype)
        assert same(written, (y if added is None else added + y).to(dtype))
        assert finite


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), 3.4e38])
def test_narrow_sees_what_is_not_finite(odd: float, dtype: torch.dtype) -> None:
    """One value that is not finite after rounding is told, wherever it stands."""
    for at in (0, 959, 960, 1499):
        x = noise((1500,), 4)
        x[at] = odd
        assert kernels.narrow(x, None, dtype)[1] == bool(x.to(dtype).isfinite().all())


@pytest.mark.parametrize("name", registry())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method gives the same bits with the kernels and without, but for the last place of its norms and inner products."""
    method = registry()[name]
    shape = (3 * BLOCK // 500, 500)
    base = noise(shape, 0, dtype)
    count = method.inputs[1] or max(2, method.inputs[0])
    models = [(base.float() + noise(shape, i + 1) * 0.1).to(dtype) for i in range(count)]
    params = bind(method, values(name, {"t": 0.3, "weight": 0.6, "density": 0.6, "epsilon": 0.1}, count))

    def merged() -> Tensor:
        return merge_tensors(method, params, models, None if method.base == "ignored" else base)

    fast, plain = merged(), without(monkeypatch, merged)
    if dtype is torch.float32:  # sums in another order differ by 1e-15, which the coefficients' float32 may round apart
        torch.testing.assert_close(fast, plain, rtol=3e-7, atol=1e-7)
    changed = (fast != plain).float().mean().item()
    summed = name in SUMMED
    assert changed == 0 or (summed and changed < 0.01)


#: methods whose coefficients come from inner products, norms or L1 norms
SUMMED = {
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "model_stock",
    "multislerp",
    "nuslerp",
    "sce",
    "slerp",
}


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLAIT_KERNELS=off does without the kernels."""
    monkeypatch.setenv("PLAIT_KERNELS", "off")
    assert kernels.library.__wrapped__() is None


def test_only_what_suits() -> None:
    """Doubles and strided tensors are left to PyTorch."""
    assert kernels.suit(torch.ones(4, 4))
    assert not kernels.suit(torch.ones(4, 4).double())
    assert not kernels.suit(torch.ones(4, 4).T[:, ::2])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 961), (400, 500), (70, 5003), (130, 16 * 97), (5, 70_000)])
@pytest.mark.parametrize("piece", [1, 5000, 1 << 16, 1 << 22])
def test_what_was_drawn(rows: int, columns: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first pass dropped is what the second drops, whether it remembers it, draws anew, or PyTorch does."""
    method, base = registry()["dare_linear"], noise((rows, columns), 0)
    models = [base + noise((rows, columns), i + 1) for i in range(3)]
    params = bind(method, {"weight": [0.5, 1.0, 2.0], "density": [0.3, 0.9, 0.0]})

    def merged() -> Tensor:
        return merge_tensors(method, params, models, base, seed=7, piece=piece)

    remembered, plain = merged(), without(monkeypatch, merged)
    monkeypatch.setattr(fused, "MEMO", 0)
    assert same(remembered, merged())
    torch.testing.assert_close(remembered, plain, rtol=3e-7, atol=1e-6)
    assert torch.equal(remembered != base, plain != base)
