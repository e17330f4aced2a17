"""A short run of the fuzzer; `make fuzz` is the long one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzz_readers", Path(__file__).with_name("fuzz.py"))
assert _spec
assert _spec.loader
FUZZ = importlib.util.module_from_spec(_spec)
sys.modules["fuzz_readers"] = FUZZ
_spec.loader.exec_module(FUZZ)


@pytest.mark.parametrize("target", FUZZ.TARGETS)
def test_no_input_breaks_a_reader(target: str) -> None:
    """500 mutated inputs each end in a value or an error for people, in time and in little memory."""
    assert FUZZ.fuzz(target, 500, seed=1)["broken"] == []


def test_the_fuzzer_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that fails on some inputs, with an exception that is no PlaitError, is found."""

    def fragile(data: bytes, folder: Path) -> None:
        if b"}" in data[-3:]:
            raise KeyError("x")

    monkeypatch.setitem(FUZZ.TARGETS, "index", fragile)
    assert FUZZ.fuzz("index", 50)["broken"]
