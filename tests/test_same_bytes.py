"""Same recipe and same inputs: same bytes, however the work is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import make
import plait
from plait.compute import Copy, Task
from plait.testing.checkpoints import same

#: one method of each kind: entries, coefficients, sums over the whole, cutoffs, random numbers, rows, whole tensors
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.3},
    "karcher": {},
    "model_stock": {},
    "ties": {"weight": 0.7, "density": 0.4},
    "breadcrumbs": {"weight": 0.7, "density": 0.6, "gamma": 0.02},
    "dare_linear": {"weight": 0.7, "density": 0.4},
    "della": {"weight": 0.7, "density": 0.5, "epsilon": 0.1},
    "sce": {"select_topk": 0.3},
}
#: whose output depends on the seed
RANDOM = ("dare_linear", "della")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models whose embeddings are four blocks long."""
    folder = tmp_path_factory.mktemp("models")
    return [make.model(folder / str(i), i, layers=1, hidden=64, vocab=4000) for i in range(3)]


def recipe(method: str, models: list[Path]) -> dict[str, Any]:
    base, *others = models
    with_base = {} if method in ("linear", "karcher") else {"base": base}
    return make.recipe(method, *others, **with_base, parameters=METHODS[method], dtype="bfloat16")


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_pieces(method: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the number of threads nor the size of the pieces changes a byte of the file."""
    found = []
    for threads, piece in ((1, None), (2, 1 << 10), (4, 1 << 17), (2, 1 << 40)):
        if piece:
            monkeypatch.setattr("plait.run.Task", partial(Task, piece=piece))
            monkeypatch.setattr("plait.run.Copy", partial(Copy, piece=piece))
        out = tmp_path / f"{threads}-{piece}"
        plait.merge(recipe(method, models)).save(out, threads=threads)
        found.append(make.hashes(out))
    assert len(found[0]) == 1
    assert all(hashes == found[0] for hashes in found)


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_shard_sizes(method: str, models: list[Path], tmp_path: Path) -> None:
    """A tensor has the same bytes whatever shard it lies in, and however the inputs are cut into shards."""
    cut = [make.write(tmp_path / m.name, load_file(m / "model.safetensors"), shards=3) for m in models]
    whole = dict(plait.merge(recipe(method, models)))
    for inputs, size in ((models, 100_000), (cut, 10**9)):
        out = tmp_path / str(size)
        plait.merge(recipe(method, inputs), shard_size=size).save(out)
        files = sorted(out.glob("*.safetensors"))
        merged = {name: x for file in files for name, x in load_file(file).items()}
        assert len(files) == (1 if size == 10**9 else 4)
        assert [name for name, x in whole.items() if not same(x, merged.pop(name))] == []
        assert merged == {}


@pytest.mark.parametrize("method", METHODS)
def test_seed(method: str, models: list[Path]) -> None:
    """Only methods with random numbers look at the seed; without one it is 0; twice the same is the same."""

    def head(**options: Any) -> Any:
        return plait.merge(recipe(method, models), **options).read("lm_head.weight")

    assert same(head(), head(seed=0))
    assert same(head(seed=7), head(seed=7))
    assert same(head(seed=7), head(seed=8)) == (method not in RANDOM)


def test_order_of_reading(models: list[Path]) -> None:
    """A tensor is the same read alone, read after others, or from its rows: randomness knows no order."""
    merge = plait.merge(recipe("dare_linear", models))
    alone = merge.read("lm_head.weight")
    every = dict(merge)
    assert same(every["lm_head.weight"], alone)
    assert same(merge.read("lm_head.weight", (1000, 1030)), alone[1000:1030])


@pytest.mark.parametrize("method", RANDOM)
def test_processes(method: str, models: list[Path], tmp_path: Path) -> None:
    """The library and the command line, under any PYTHONHASHSEED, write the same files; the seed is recorded."""
    for model in models:
        make.write_json(model / "generation_config.json", {"from": model.name})
    path = make.write_json(tmp_path / "recipe.yml", recipe(method, models))
    for seed, hash_seeds in ((None, "024"), (7, "135")):
        plait.merge(path, seed=seed).save(tmp_path / f"library-{seed}" / "out")
        expected = make.hashes(tmp_path / f"library-{seed}" / "out", "*")
        assert {"model.safetensors", "README.md", "config.json", "plait_provenance.json"} <= set(expected)
        facts = json.loads((tmp_path / f"library-{seed}" / "out" / "plait_provenance.json").read_text())
        assert facts["seed"] == (seed or 0)
        for hash_seed in hash_seeds:
            out = tmp_path / hash_seed / "out"
            options = [] if seed is None else ["--random-seed", str(seed)]
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "plait",
                    "merge",
                    path,
                    out,
                    "--quiet",
                    "-j",
                    hash_seed if hash_seed > "0" else "1",
                    *options,
                ],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                check=True,
            )
            assert make.hashes(out, "*") == expected
