"""On a GPU, where there is one: what methods, bricks and whole merges give there, next to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import make
import plait
from methods.settings import values
from plait import device, run
from plait.bricks import bricks
from plait.cli import main
from plait.journal import NAME
from plait.methods import registry
from plait.output.whole import PROVENANCE

GPUS = [kind for kind in device.KINDS if device.count(kind)]
if not GPUS:
    pytest.skip("there is no GPU here", allow_module_level=True)
GPU = GPUS[0]
SEVERAL = {"weight": 0.6, "density": 0.6, "epsilon": 0.1, "t": 0.3, "gamma": 0.05}

#: methods whose every entry comes from a few sums, products and random numbers in one order: no bit may differ
ENTRYWISE = {
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus_ta",
    "emr",
    "linear",
    "nearswap",
    "passthrough",
    "ram",
    "task_arithmetic",
    "ties",
}


#: methods that take an entry from one model or another by sums: at the edge it may be the other's
CHOOSING = {"arcee_fusion"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models near it, bfloat16."""
    folder = tmp_path_factory.mktemp("models")
    base = make.tensors(0, hidden=64, vocab=200)
    made = [base]
    for seed in (1, 2, 3):
        noise = make.tensors(seed, hidden=64, vocab=200)
        made.append({name: x + 0.1 * noise[name] for name, x in base.items()})
    return [
        make.write(folder / f"m{i}", {name: x.bfloat16() for name, x in tensors.items()})
        for i, tensors in enumerate(made)
    ]


def recipe(name: str, models: list[Path], **more: Any) -> dict[str, Any]:
    method = registry()[name]
    count = min(3, method.inputs[1] or 3)
    given = values(name, SEVERAL, count)
    parameters = {key: value[0] if isinstance(value, tuple) else value for key, value in given.items()}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    base = None if method.base == "ignored" else models[0]
    return make.recipe(name, *models[1 : 1 + count], base=base, parameters=parameters, **more)


def both(made: dict[str, Any], tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the CPU and the GPU write."""
    for name, place in (("cpu", None), ("gpu", GPU)):
        plait.merge(made).save(tmp_path / name, device=place)
    return load_file(tmp_path / "cpu" / "model.safetensors"), load_file(tmp_path / "gpu" / "model.safetensors")


def near(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor], most: int = 1) -> None:
    """But for the rounding of one entry in a hundred, by `most` steps, they are the same."""
    assert here.keys() == there.keys()
    for name, x in here.items():
        steps = (x.view(torch.int16).int() - there[name].view(torch.int16).int()).abs()
        assert steps.max() <= most, name
        assert (steps > 0).float().mean() <= 0.01 or steps.numel() <= 100, name


@pytest.mark.parametrize("name", registry())
def test_methods(name: str, models: list[Path], tmp_path: Path) -> None:
    """A method gives there what it gives here: bit for bit where entries are worked out by themselves, else to the last place."""
    here, there = both(recipe(name, models, dtype="bfloat16"), tmp_path)
    if name in ENTRYWISE:
        assert all(torch.equal(x, there[key]) for key, x in here.items())
    near(here, there, 1 if name not in CHOOSING else 1 << 16)


@pytest.mark.parametrize("name", bricks())
def test_bricks(name: str, models: list[Path], tmp_path: Path) -> None:
    """So does a brick around a method."""
    needed = {p.name: 0.5 for p in bricks()[name].parameters if p.required}
    made = recipe("task_arithmetic", models, dtype="bfloat16")
    near(*both({**made, bricks()[name].at: [{name: needed} if needed else name]}, tmp_path))


@pytest.mark.parametrize("name", ["ties", "dare_ties", "iso_c", "model_stock"])
def test_the_same_bits(name: str, models: list[Path]) -> None:
    """The same recipe gives the same bits there, with one thread or three, and in pieces of another size."""
    plan = plait.merge(recipe(name, models)).plan

    def written(threads: int, piece: int | None) -> dict[str, dict[int, bytes]]:
        found: dict[str, dict[int, bytes]] = {}

        def sink(name: str, row: int, piece: Any) -> None:
            found.setdefault(name, {})[row] = bytes(piece.reshape(-1).view(torch.uint8).numpy())

        run.run(plan, sink, threads=threads, piece=piece, devices=(GPU,))
        return {name: {0: b"".join(parts[row] for row in sorted(parts))} for name, parts in found.items()}

    assert written(1, None) == written(3, None) == written(2, 1 << 10)


@pytest.mark.parametrize(
    "option", [f"--device={GPU}", f"--device={GPU}:0", "--device=auto", "--multi-gpu", "--gpu-rich"]
)
def test_command_line(option: str, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each spelling computes there, says so, and the provenance keeps it."""
    make.write_json(tmp_path / "r.yml", recipe("ties", models, dtype="bfloat16"))
    for out, more in (("here", []), ("there", [option])):
        with pytest.raises(SystemExit) as ended:
            main(["merge", str(tmp_path / "r.yml"), str(tmp_path / out), *more])
        assert ended.value.code == 0
    assert f"computes on {GPU}" in capsys.readouterr().err
    assert make.hashes(tmp_path / "here", "*.safetensors") == make.hashes(tmp_path / "there", "*.safetensors")
    assert f'"{GPU}' in (tmp_path / "there" / PROVENANCE).read_text()


def test_not_finite(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NaN is told there as it is here."""
    spoilt = load_file(models[1] / "model.safetensors")
    spoilt["model.norm.weight"][0] = float("nan")
    broken = make.write(tmp_path / "nan", spoilt)
    make.write_json(tmp_path / "r.yml", make.recipe("linear", broken, models[2]))
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--device", GPU])
    assert ended.value.code == 2
    assert "values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or (tmp_path / "out" / NAME).is_file()


@pytest.mark.skipif(GPU != "cuda", reason="only CUDA can be told to have less memory")
def test_too_small(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU without room for the work is told, with what to do; nothing is left behind that would be taken for a model."""
    make.write_json(tmp_path / "r.yml", recipe("ties", models))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--device", GPU])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "the memory of cuda is too small" in said
    assert "--num-threads" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists() or (tmp_path / "out" / NAME).is_file()
