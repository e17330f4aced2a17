"""Devices: which ones a name means, and that arithmetic there is the kernels'."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import yaml

import make
import plait
from methods.settings import values
from plait import device, kernels, run
from plait.cli import main
from plait.compute import PIECE, Stretch, Task, gathered, stored
from plait.device import devices
from plait.errors import MergeError, PlaitError
from plait.method import bind
from plait.methods import registry

HERE = {kind: device.count(kind) for kind in device.KINDS}
MISSING = [kind for kind, count in HERE.items() if not count]


def test_the_cpu_is_no_device() -> None:
    """Without a device, and on the CPU, the kernels work."""
    assert devices(None) == devices("cpu") == devices("CPU") == ()


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "cpu:1", "auto:0", "cuda0", ""])
def test_unknown(asked: str) -> None:
    """What is no device is refused with the names that are."""
    with pytest.raises(PlaitError, match=r"wanted: +cpu, auto, cuda"):
        devices(asked)


@pytest.mark.parametrize("asked", [*MISSING, *(f"{kind}:99" for kind in device.KINDS)])
def test_missing(asked: str) -> None:
    """A device that this machine lacks is refused, and what there is is said."""
    with pytest.raises(PlaitError, match=f"there is no {asked} device here"):
        devices(asked)


def test_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is the best kind that is there; several are all of it; a number is that one."""
    monkeypatch.setattr(device, "count", {"cuda": 0, "xpu": 3, "mps": 1}.__getitem__)
    assert devices("auto") == ("xpu",)
    assert devices("xpu:2") == ("xpu:2",)
    assert devices(None, several=True) == devices("auto", several=True) == ("xpu:0", "xpu:1", "xpu:2")
    assert devices("mps", several=True) == ("mps",)
    with pytest.raises(PlaitError, match=r"found: +3 xpu, 1 mps"):
        devices("cuda")


def test_row_38_multi_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--multi-gpu`, `--gpu-rich` and `--cuda` without a GPU end with one message, exit code 2, and nothing written."""
    monkeypatch.setattr(device, "count", lambda kind: 0)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        yaml.safe_dump(make.recipe("linear", make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)))
    )
    for option in ("--multi-gpu", "--gpu-rich", "--cuda", "--device=cuda"):
        with pytest.raises(SystemExit) as ended:
            main(["merge", str(recipe), str(tmp_path / "out"), option])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert "only the CPU" in said
        assert "leave the option out" in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_each_thread_has_one() -> None:
    """Threads are given the devices in turn, each always the same."""
    place = device.shared(("a", "b"))
    found: list[tuple[str | None, str | None]] = []
    for _ in range(4):
        thread = threading.Thread(target=lambda: found.append((place(), place())))
        thread.start()
        thread.join()
    assert found == [("a", "a"), ("b", "b"), ("a", "a"), ("b", "b")]
    assert device.shared(())() is None


@pytest.mark.parametrize("name", [name for name in registry() if registry()[name].survey is None])
def test_every_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path by way of a device gives the bits of PyTorch on the CPU, for every method; here with the CPU as the device."""
    method = registry()[name]
    count = method.inputs[1] or max(2, method.inputs[0])
    noise = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(70, 96, generator=noise) * 0.1).bfloat16() for _ in range(count + 1)]
    params = bind(method, values(name, {"t": 0.3, "weight": 0.6, "density": 0.6, "epsilon": 0.1}, count))
    moved: list[str] = []

    def to_device(x: torch.Tensor, where: str) -> torch.Tensor:
        moved.append(where)
        return x.clone()

    monkeypatch.setattr(device, "to_device", to_device)
    monkeypatch.setattr(kernels, "library", lambda: None)
    has_base = method.base != "ignored"
    readers = [lambda rows, x=x: x if rows is None else x[rows[0] : rows[1]] for x in inputs]

    def merged(where: str | None) -> torch.Tensor:
        task = Task(
            name="x",
            shape=(70, 96),
            dtype="BF16",
            method=method,
            params=params,
            models=readers[1:],
            base=readers[0] if has_base else None,
            piece=PIECE if where is None else 96 * 16,
            device=where,
            stored=[stored("BF16", reader) for reader in readers[0 if has_base else 1 :]],
        )
        return gathered(task.shape, task.dtype, task.run())

    plain = merged(None)
    assert moved == []
    assert torch.equal(plain, merged("cpu"))
    assert set(moved) == {"cpu"}


@pytest.mark.parametrize("method", ["ties", "passthrough", *(name for name in registry() if registry()[name].survey)])
def test_a_whole_plan(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is shared among devices has the bits of one on the CPU."""
    paths = [make.model(tmp_path / name, seed) for seed, name in enumerate("abc")]
    recipe = make.recipe("passthrough", paths[0])
    if method != "passthrough":
        own = values(method, {"weight": 0.5, "density": 0.5}, 1)
        parameters = {name: value[0] if isinstance(value, tuple) else value for name, value in own.items()}
        recipe = make.recipe(method, *paths[1:], base=paths[0], parameters=parameters)
    plan = plait.merge(recipe).plan

    def written(places: tuple[str, ...]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}

        def sink(name: str, row: int, piece: object) -> None:
            piece = piece.view if isinstance(piece, Stretch) else piece
            if isinstance(piece, torch.Tensor):
                piece = piece.reshape(-1).view(torch.uint8).numpy().data
            assert isinstance(piece, memoryview)
            found[name] = found.get(name, b"") + bytes(piece)

        run.run(plan, sink, devices=places)
        return found

    assert written(("cpu", "cpu")) == written(())


def test_a_full_device(tmp_path: Path) -> None:
    """What PyTorch says of a device without room becomes a message with what to do; tests/test_gpu.py fills a real one."""
    plan = plait.merge(make.recipe("linear", make.model(tmp_path / "a"))).plan

    def sink(name: str, row: int, piece: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MergeError, match="the memory of cpu is too small") as caught:
        run.run(plan, sink, threads=1, devices=("cpu",))
    assert "--num-threads" in str(caught.value.do)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run.run(plan, sink, threads=1)


def test_no_limit_of_memory_there() -> None:
    """`--max-memory` is no promise that can be kept with a GPU's driver in the process: it is refused."""
    device.refuse_limit((), 1)
    device.refuse_limit(("cuda",), None)
    with pytest.raises(PlaitError, match="--max-memory cannot be kept on a GPU"):
        device.refuse_limit(("cuda",), 1)
