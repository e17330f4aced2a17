"""The examples: every recipe is right, merges what it says, and the script on real weights runs."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait import fit
from plait.demo.story import unpack
from plait.recipe import load

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yml"))


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the demo's models in `demo/models`."""
    unpack(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(recipe: str, out: Path) -> dict[str, torch.Tensor]:
    plait.merge(EXAMPLES / recipe).save(out)
    return load_file(out / "model.safetensors")


def weights(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(Path("demo", "models", name, "model.safetensors"))
    return {name: tensor.float() for name, tensor in tensors.items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_example_recipe_is_right(recipe: Path) -> None:
    """Each example passes every check without a warning."""
    assert fit.problems(load(recipe), lenient=False) == ([], [])


def test_every_example_is_in_the_readme() -> None:
    """The examples' page names each file."""
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert [path.name for path in (*RECIPES, *EXAMPLES.glob("*.py")) if f"]({path.name})" not in page] == []


def test_quickstart_is_the_mean_of_two_models(playground: Path) -> None:
    """quickstart.yml writes the mean of add and rev, rounded once to bfloat16."""
    out, add, rev = merged("quickstart.yml", playground / "out"), weights("add"), weights("rev")
    assert out.keys() == add.keys()
    assert all(torch.equal(out[name], ((add[name] + rev[name]) / 2).bfloat16()) for name in add)


def test_task_arithmetic_uses_the_weights_that_its_comments_promise(playground: Path) -> None:
    """task_arithmetic.yml gives the first and last layer, the MLPs and the rest the weights that it says."""
    out = merged("task_arithmetic.yml", playground / "out")
    base, add, rev, src = (weights(name) for name in ("base", "add", "rev", "src"))
    for name, (w_add, w_rev, w_src) in {
        "model.layers.0.self_attn.q_proj.weight": (0.8, 0.4, 0.6),
        "model.layers.3.self_attn.o_proj.weight": (0.8, 0.9, 0.6),
        "model.layers.3.mlp.down_proj.weight": (0.8, 0.9, 0.3),
    }.items():
        models = ((w_add, add), (w_rev, rev), (w_src, src))
        wanted = base[name].double() + sum(w * (m[name] - base[name]).double() for w, m in models)
        assert out[name].dtype == torch.float32
        torch.testing.assert_close(out[name].double(), wanted, rtol=1e-6, atol=1e-7)


def test_stack_is_six_layers_that_load_and_run(playground: Path) -> None:
    """stack.yml writes the six layers that it says, bit for bit, and transformers runs the result."""
    transformers = pytest.importorskip("transformers")
    out, base = merged("stack.yml", playground / "out"), weights("base")
    for layer, source in enumerate((0, 1, 2, 1, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(out[name.format(layer)].float(), base[name.format(source)])
    model, report = transformers.AutoModelForCausalLM.from_pretrained(playground / "out", output_loading_info=True)
    assert model.config.num_hidden_layers == 6
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("way", [["--perturb"], ["--steps", "1"]], ids=["perturb", "tune"])
def test_the_script_on_real_weights_runs(playground: Path, way: list[str]) -> None:
    """smollm2.py makes a sibling, merges with a gradient and measures all three; here with the demo's base as the base."""
    pytest.importorskip("transformers")
    (playground / "small").mkdir()
    (playground / "demo" / "models" / "base").rename(playground / "small" / "base")
    command = [sys.executable, str(EXAMPLES / "smollm2.py"), "--out", "small", *way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured = re.findall(r"^(base|sibling|merged) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in measured] == ["base", "sibling", "merged"]
    assert all(math.isfinite(float(number)) and float(number) > 1 for _, *numbers in measured for number in numbers)
    base, sibling, between = (
        load_file(playground / "small" / name / "model.safetensors") for name in ("base", "sibling", "merged")
    )
    first, last = "model.layers.0.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight"
    assert torch.equal(between[first], base[first])
    assert torch.equal(between[last], sibling[last])
    assert not torch.equal(base[last], sibling[last])
