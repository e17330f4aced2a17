"""The front door: recipes in, merges that are not yet written out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import make
import plait
from plait.errors import ModelError, PlaitError, PlanError, RecipeError
from plait.testing.checkpoints import same

STEP = 2.0**-24  # half a unit in the last place of float32, relative


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)


def average(*models: Path) -> dict[str, object]:
    return make.recipe("linear", *models)


def test_nothing_is_read(models: tuple[Path, Path]) -> None:
    """A merge is planned from headers alone: weights that have become unreadable are not noticed before they are needed."""
    merge = plait.merge(average(*models))
    for folder in models:
        file = folder / "model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        with open(file, "r+b") as opened:
            opened.truncate(header)
    assert merge.specs["lm_head.weight"].shape == (16, 8)
    with pytest.raises(ModelError, match="shorter"):
        merge.read("lm_head.weight")


@pytest.mark.parametrize("form", ["dict", "path", "text"])
def test_forms(form: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    """A recipe may be a mapping, a path or a text: the merge is the same."""
    text = f"merge_method: linear\nmodels:\n- model: {models[0]}\n- model: {models[1]}\nparameters: {{weight: 1}}\n"
    (tmp_path / "recipe.yml").write_text(text)
    source = {"dict": average(*models), "path": tmp_path / "recipe.yml", "text": text}[form]
    a, b = (load_file(folder / "model.safetensors") for folder in models)
    for name, x in plait.merge(source):
        assert same(x, (a[name] + b[name]) / 2), name


def test_beside_the_recipe(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of models are looked for in the current directory, then beside the recipe."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "recipe.yml").write_text("merge_method: passthrough\nmodels: [{model: a}]\n")
    assert len(plait.merge("../recipe.yml")) == 21
    make.model(tmp_path / "elsewhere" / "a", layers=1)
    assert len(plait.merge("../recipe.yml")) == 12


def test_order(tmp_path: Path) -> None:
    """Tensors come in the order of the model: embedding, layers by number, what comes after them."""
    folder = make.model(tmp_path / "a", layers=12)
    names = [name for name, _ in plait.merge(make.recipe("passthrough", folder, parameters={}))]
    numbers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert names[0] == "model.embed_tokens.weight"
    assert set(names[-2:]) == {"model.norm.weight", "lm_head.weight"}
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(12))


def test_unknown_tensor(models: tuple[Path, Path]) -> None:
    """Asking for a tensor that the merge does not have names the nearest one."""
    with pytest.raises(PlanError, match=r"did you mean lm_head\.weight"):
        plait.merge(average(*models)).read("lm_heat.weight")


def test_check_finds_all(models: tuple[Path, Path]) -> None:
    """`check` returns the problems instead of raising them, and nothing for a good recipe."""
    assert plait.check(average(*models)) == []
    bad = average(*models) | {"dtype": "bf17", "base_mode": "x"}
    assert len(plait.check(bad)) == 2
    assert all(isinstance(error, RecipeError) for error in plait.check(bad))


def test_missing_models_all_told(tmp_path: Path) -> None:
    """Every model that is not there is told, each with its name."""
    errors = plait.check(average(tmp_path / "x/y/z", tmp_path / "u/v/w"))
    assert [type(error) for error in errors] == [ModelError, ModelError]
    assert "x/y/z" in str(errors[0])
    assert "u/v/w" in str(errors[1])


def test_inspect(tmp_path: Path) -> None:
    """`inspect` tells a model's stack, its vocabulary and its ties from headers."""
    arch = plait.inspect(make.model(tmp_path / "a", layers=3, tied=True)).arch
    assert arch.modules[0].count == 3
    assert arch.vocab_axis("model.embed_tokens.weight") == 0
    assert dict(arch.tied) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_to_transformers(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The merge as a transformers model gives the same logits, bit for bit, as the directory that `save` writes."""
    from transformers import AutoModelForCausalLM

    merge = plait.merge(average(*models))
    merge.save(tmp_path / "out")
    ids = torch.tensor([[1, 5, 9, 3]])
    with torch.no_grad():
        here = merge.to_transformers()(ids).logits
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert torch.equal(here, saved)
    assert here.std() > 0


def test_transformers_that_cannot(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge of no class of transformers, or of a config that it cannot use, is told; and what to install without it."""
    merge = plait.merge(average(*models))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(PlaitError, match="is not installed") as lacking:
            merge.to_transformers()
    assert lacking.value.do == 'pip install "plait[run]"'
    strange = make.model(tmp_path / "strange", settings={"architectures": ["NoSuchModel"]})
    with pytest.raises(PlaitError, match="no class for this model") as unknown:
        plait.merge(average(strange)).to_transformers()
    assert "NoSuchModel" in str(unknown.value.found)
    odd = make.model(tmp_path / "odd", settings={"hidden_act": "nonesuch"})
    with pytest.raises(PlaitError, match="transformers cannot make a model of this merge") as strange_config:
        plait.merge(average(odd)).to_transformers()
    assert "nonesuch" in str(strange_config.value.found)
    assert str(odd) in str(strange_config.value.do)


SLERP = """\
slices:
  - sources:
      - model: {a}
        layer_range: [0, 32]
      - model: {b}
        layer_range: [0, 32]
merge_method: slerp
base_model: {a}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Shoemake's formula on whole tensors, float64; straight where they are nearly parallel."""
    cos = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    if abs(cos) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cos)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def t_of(name: str) -> float:
    layer = int(name.split(".")[2]) if ".layers." in name else None
    for word, values in (("self_attn", [0, 0.5, 0.3, 0.7, 1]), ("mlp", [1, 0.5, 0.7, 0.3, 0])):
        if word in name and layer is not None:
            return float(np.interp(layer / 31, np.linspace(0, 1, 5), values))
    return 0.5


def test_slerp_of_mistrals(tmp_path: Path) -> None:
    """The well-known slerp of two 32-layer Mistrals is the formula's, rounded once; transformers loads it and generates."""
    from transformers import AutoModelForCausalLM

    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    folders = [
        make.model(tmp_path / name, seed, layers=32, dtype=torch.bfloat16, settings=mistral)
        for seed, name in enumerate("ab")
    ]
    out = tmp_path / "out"
    plait.merge(SLERP.format(a=folders[0], b=folders[1])).save(out)
    a, b = ({n: x.double().numpy() for n, x in load_file(f / "model.safetensors").items()} for f in folders)
    merged = load_file(out / "model.safetensors")
    assert set(merged) == set(a)
    for name, x in merged.items():
        exact = slerp(a[name], b[name], t_of(name))
        # float32 may be off by some half units of the terms before the one rounding to bfloat16
        slack = 8 * STEP * (abs(a[name]) + abs(b[name]))
        low, high = (torch.from_numpy(exact + side * slack).float().to(torch.bfloat16) for side in (-1, 1))
        assert x.dtype == torch.bfloat16
        assert ((low <= x) & (x <= high)).all(), name
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 32
    assert model.generate(torch.tensor([[1, 4]]), max_new_tokens=4, do_sample=False, pad_token_id=0).shape[1] > 2
