"""`plait raw`: state dicts of anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import make
from plait import raw
from plait.cli import main
from plait.errors import PlaitError

Tensors = dict[str, torch.Tensor]


def tensors(seed: int, *, layers: int = 3, more: tuple[str, ...] = ()) -> Tensors:
    """Something that is no transformer: two stacks, loose tensors, a counter."""
    generator = torch.Generator().manual_seed(seed)
    names = {f"{side}.{i}.conv.weight": (4, 3, 2, 2) for side in ("down", "up") for i in range(layers)}
    names |= {"time.weight": (6, 4), "scale": (), **dict.fromkeys(more, (5,))}
    made = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    return {**made, "steps": torch.tensor(7)}


def files(folder: Path, count: int = 2, suffix: str = ".safetensors", **more: Any) -> list[str]:
    found = []
    for i in range(count):
        path = folder / f"x{i}{suffix}"
        if suffix == ".safetensors":
            save_file(tensors(i, **more), path)
        else:
            torch.save(tensors(i, **more), path)
        found.append(str(path))
    return found


def recipe(folder: Path, inputs: list[str], method: str = "linear", **rest: Any) -> str:
    path = folder / "raw.yml"
    path.write_text(json.dumps({"parameters": {"weight": 1}, **make.recipe(method, *inputs), **rest}))
    return str(path)


def run(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as done:
        main(["raw", *words, "--quiet"])
    assert done.value.code == code


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".bin"])
def test_files_of_each_kind(suffix: str, tmp_path: Path) -> None:
    """The mean of two files is the mean of their tensors, whatever they are called; counters that agree are kept."""
    run(recipe(tmp_path, files(tmp_path, suffix=suffix)), str(tmp_path / "out"))
    one, two, found = tensors(0), tensors(1), load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == one.keys()
    for name, x in found.items():
        if x.is_floating_point():
            torch.testing.assert_close(x, (one[name] + two[name]) / 2)
    assert found["steps"] == 7
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"state_dict": x, "epoch": 3},
        lambda x: {"model": {"state_dict": x}, "optimizer": {"lr": 0.1}},
        lambda x: {"state_dict": {"model": x, "step": 5}},
        lambda x: {"model_state_dict": x},
    ],
)
def test_row_32_pytorch_nested_state_dict(wrap: Any, tmp_path: Path) -> None:
    """A state dict is found inside what a trainer saves around it, however deep."""
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"x{i}.ckpt"))
        torch.save(wrap(tensors(i)), paths[-1])
    run(recipe(tmp_path, paths), str(tmp_path / "out"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found["time.weight"], (tensors(0)["time.weight"] + tensors(1)["time.weight"]) / 2)


def test_names_that_not_all_have(tmp_path: Path) -> None:
    """Names must agree; -i merges those that all inputs have, -u each of those that have it, and a lone one is copied."""
    save_file(tensors(0, more=("a", "both")), tmp_path / "x.safetensors")
    save_file(tensors(1, more=("b.0.c", "both")), tmp_path / "y.safetensors")
    path = recipe(tmp_path, [str(tmp_path / n) for n in ("x.safetensors", "y.safetensors")])
    run(path, str(tmp_path / "no"), code=2)
    with pytest.raises(PlaitError, match="do not have the same tensors") as found:
        raw.prepare(path)
    assert "y.safetensors lacks 1: a" in str(found.value)
    run(path, str(tmp_path / "both"), "-i")
    run(path, str(tmp_path / "any"), "--tensor-union")
    common = set(tensors(0, more=("both",)))
    assert set(load_file(tmp_path / "both" / "model.safetensors")) == common
    held = load_file(tmp_path / "any" / "model.safetensors")
    assert set(held) == common | {"a", "b.0.c"}
    assert torch.equal(held["a"], tensors(0, more=("a", "both"))["a"])
    assert torch.equal(held["b.0.c"], tensors(1, more=("b.0.c", "both"))["b.0.c"])
    run(path, str(tmp_path / "odd"), "-i", "-u", code=2)
    assert not (tmp_path / "no").exists()


def test_union_of_a_base_and_others(tmp_path: Path) -> None:
    """With a base, a tensor that the base lacks is not measured against anything: it is copied, and said so."""
    save_file(tensors(0), tmp_path / "base.safetensors")
    for i in (1, 2):
        save_file(tensors(i, more=("new",)), tmp_path / f"x{i}.safetensors")
    inputs = [str(tmp_path / f"x{i}.safetensors") for i in (1, 2)]
    path = recipe(tmp_path, inputs, "task_arithmetic", base_model=str(tmp_path / "base.safetensors"))
    (part,) = raw.prepare(path, names="union")
    step = part.plan.step("new")
    assert step.method is None
    assert step.note
    assert "copied" in step.note


def test_gradients_go_by_the_numbers_in_names(tmp_path: Path) -> None:
    """A gradient runs over the layers of each stack; what has no number takes its first value."""
    inputs = files(tmp_path)
    entries = [
        {"model": inputs[0], "parameters": {"weight": [0, 1]}},
        {"model": inputs[1], "parameters": {"weight": [1, 0]}},
    ]
    run(recipe(tmp_path, inputs, models=entries), str(tmp_path / "out"))
    one, two, found = tensors(0), tensors(1), load_file(tmp_path / "out" / "model.safetensors")
    for side in ("down", "up"):
        for layer, share in enumerate((0.0, 0.5, 1.0)):
            name = f"{side}.{layer}.conv.weight"
            torch.testing.assert_close(found[name], share * one[name] + (1 - share) * two[name])
    torch.testing.assert_close(found["time.weight"], two["time.weight"])


def test_row_20_seeds(tmp_path: Path) -> None:
    """A random method gives the same bytes in every process, for one seed; another seed gives others."""
    inputs = files(tmp_path, 3)
    path = recipe(tmp_path, inputs[1:], "dare_linear", base_model=inputs[0], parameters={"weight": 1, "density": 0.5})
    found = []
    for seed, hashed in ((1, 0), (1, 1), (2, 0)):
        out = tmp_path / f"{seed} {hashed}"
        words = [sys.executable, "-m", "plait", "raw", path, str(out), "--random-seed", str(seed), "--quiet"]
        subprocess.run(words, check=True, env={"PYTHONHASHSEED": str(hashed), "PATH": ""})
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def pipeline(folder: Path, seed: int) -> Path:
    """A folder as diffusers writes it: two components with weights, two without."""
    for name, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / name).mkdir(parents=True)
        save_file(tensors(seed), folder / name / f"{file}.safetensors")
        make.write_json(folder / name / "config.json", {"_class_name": name, "sample_size": 64})
    save_file(tensors(seed), folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    for name in ("scheduler", "tokenizer"):
        (folder / name).mkdir()
        make.write_json(folder / name / f"{name}_config.json", {"a": seed})
    kinds = {name: ["x", "Y"] for name in ("unet", "text_encoder", "scheduler", "tokenizer")}
    make.write_json(folder / "model_index.json", {"_class_name": "Pipeline", **kinds, "safety_checker": [None, None]})
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_a_pipeline_of_diffusers(shards: bool, tmp_path: Path) -> None:
    """Each component is merged, under the names that diffusers looks for; the first pipeline gives the rest."""
    inputs = [str(pipeline(tmp_path / f"p{i}", i)) for i in range(2)]
    run(recipe(tmp_path, inputs), str(tmp_path / "out"), *(("--out-shard-size", "300") if shards else ()))
    out = tmp_path / "out"
    stems = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, stem in stems.items():
        held: Tensors = {}
        for file in sorted((out / name).glob("*.safetensors")):
            assert file.name.startswith(stem)
            held |= load_file(file)
        assert (out / name / f"{stem}.safetensors.index.json").exists() == shards
        assert held.keys() == tensors(0).keys()
        torch.testing.assert_close(held["time.weight"], (tensors(0)["time.weight"] + tensors(1)["time.weight"]) / 2)
        assert json.loads((out / name / "config.json").read_text()) == {"_class_name": name, "sample_size": 64}
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        assert (out / name).read_bytes() == (Path(inputs[0]) / name).read_bytes()
    run(recipe(tmp_path, inputs), str(out), code=2)
    run(recipe(tmp_path, [inputs[0], files(tmp_path)[0]]), str(tmp_path / "odd"), code=2)


def test_mistakes(tmp_path: Path) -> None:
    """Slices, unlike shapes and unsafe files are refused before the work."""
    inputs = files(tmp_path)
    sliced = {"merge_method": "passthrough", "slices": [{"sources": [{"model": inputs[0], "layer_range": [0, 1]}]}]}
    with pytest.raises(PlaitError, match="'slices' is for models"):
        raw.prepare(sliced)
    save_file({**tensors(1), "time.weight": torch.zeros(6, 5)}, inputs[1])
    with pytest.raises(PlaitError, match="differ in the shape of"):
        raw.prepare(make.recipe("linear", *inputs))
    torch.save({"state_dict": tensors(0), "callback": Path("x")}, tmp_path / "odd.ckpt")
    with pytest.raises(PlaitError, match="refused by PyTorch's safe loader"):
        raw.prepare(make.recipe("linear", inputs[0], tmp_path / "odd.ckpt"))


def test_what_inputs_do_not_share(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Pipelines without a component of the first, and inputs without a common name, are refused before the work."""
    inputs = [str(pipeline(tmp_path / f"p{i}", i)) for i in range(2)]
    shutil.rmtree(tmp_path / "p1" / "unet")
    told = refused("p1 has no component 'unet'", "raw", recipe(tmp_path, inputs), tmp_path / "out")
    assert "text_encoder" in told
    save_file({f"x.{name}": x for name, x in tensors(1).items()}, tmp_path / "other.safetensors")
    path = recipe(tmp_path, [files(tmp_path, 1)[0], str(tmp_path / "other.safetensors")])
    refused("no tensor in common", "raw", path, tmp_path / "out", "-i")


def test_a_union_without_a_base_says_what_it_leaves(tmp_path: Path) -> None:
    """What two inputs have and the base lacks is copied from the first of them, and the plan says so of the other's."""
    save_file(tensors(0), tmp_path / "base.safetensors")
    for i in (1, 2):
        save_file(tensors(i, more=("new", "down.0.new")), tmp_path / f"x{i}.safetensors")
    inputs = [str(tmp_path / f"x{i}.safetensors") for i in (1, 2)]
    base = {"base_model": str(tmp_path / "base.safetensors")}
    (part,) = raw.prepare(recipe(tmp_path, inputs, "task_arithmetic", **base), names="union")
    (lost,) = part.plan.dropped
    assert sorted(lost.names) == ["down.0.new", "new"]
    assert lost.reason.endswith("so that of " + inputs[0] + " is copied")
