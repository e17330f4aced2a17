"""What is compiled for other processors than this one gives the same bits: each kind that this one can run as well."""

from __future__ import annotations

import ast
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import make
import plait
from plait import kernels

COMPILER = next((path for name in (os.environ.get("CC"), "cc", "gcc") if name and (path := shutil.which(name))), None)
#: bytes of a vector -> the level of its code, what a processor must have to run it
LEVELS = {16: ("x86-64", "sse2"), 32: ("x86-64-v3", "avx2"), 64: ("x86-64-v4", "avx512vl")}
#: those with sums, random numbers, cutoffs, votes
METHODS: dict[str, dict[str, Any]] = {
    "karcher": {},
    "slerp": {"t": 0.3},
    "model_stock": {},
    "nuslerp": {"weight": 0.4},
    "ties": {"weight": 0.7, "density": 0.4},
    "breadcrumbs": {"weight": 0.7, "density": 0.6, "gamma": 0.02},
    "dare_ties": {"weight": 0.7, "density": 0.4},
    "dare_linear": {"weight": 0.7, "density": 0.35, "rescale": False},
    "della": {"weight": 0.7, "density": 0.5, "epsilon": 0.1},
    "sce": {"select_topk": 0.3},
}


def compiled(folder: Path, nbytes: int) -> ctypes.CDLL:
    """The kernels for one kind of processor alone."""
    level, flag = LEVELS[nbytes]
    if sys.platform != "linux" or COMPILER is None:
        pytest.skip("needs Linux and a C compiler")
    if "__x86_64__" not in (macros := _macros()) or "__clang__" in macros or int(macros["__GNUC__"]) < 12:
        if nbytes != 16:
            pytest.skip("other kinds are compiled by GCC 12 or later for x86-64")
        level = ""
    elif flag not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {flag}")
    fast = f'-DFAST=__attribute__((target("arch={level}")))' if level else "-DFAST="
    target = folder / f"kernels-{nbytes}.so"
    source = Path(kernels.__file__).with_name("kernels.c")
    command = [COMPILER, *_flags(), fast, f"-DCHOSEN(name)=name##_{nbytes}", "-o", target, source, "-lm"]
    subprocess.run(command, check=True)
    library = kernels.loaded(target)
    assert library is not None
    return library


def _flags() -> tuple[str, ...]:
    """Those that the package is built with."""
    built = ast.parse((Path(__file__).parents[2] / "hatch_build.py").read_text()).body
    values = [a.value for a in built if isinstance(a, ast.Assign) and ast.unparse(a.targets[0]) == "FLAGS"]
    flags: tuple[str, ...] = ast.literal_eval(values[0])
    return flags


def _macros() -> dict[str, str]:
    """What the compiler says of itself and its target."""
    command = [COMPILER or "", "-dM", "-E", "-x", "c", os.devnull]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {word: value for _, word, value in (line.split(" ", 2) for line in lines)}


@pytest.mark.skipif(kernels.library() is None, reason="the kernels are not compiled on this machine")
@pytest.mark.parametrize("nbytes", LEVELS)
def test_same_bits(nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [make.model(tmp_path / str(i), i, layers=1, hidden=60, vocab=1500) for i in range(4)]
    library = compiled(tmp_path, nbytes)

    def merged(name: str, out: Path) -> dict[str, str]:
        count = 2 if name == "slerp" else 3
        others = models[1:count] if name in ("slerp", "karcher", "nuslerp") else models[1:]
        base = {} if name in ("karcher", "nuslerp") else {"base": models[0]}
        plait.merge(make.recipe(name, *others, **base, parameters=METHODS[name], dtype="bfloat16")).save(out)
        return make.hashes(out)

    expected = {name: merged(name, tmp_path / f"{name}-here") for name in METHODS}
    monkeypatch.setattr(kernels, "library", lambda: library)
    assert {name: merged(name, tmp_path / f"{name}-there") for name in METHODS} == expected
