"""Every test of a brick runs twice: with the loops in C, and with the PyTorch code that stands in for them."""

from __future__ import annotations

import pytest

from plait import kernels


@pytest.fixture(autouse=True, params=["C", "PyTorch"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PyTorch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        pytest.skip("the kernels are not compiled on this machine")
    return request.param
