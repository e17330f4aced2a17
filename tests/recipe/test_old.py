"""Recipes of older tools become clean ones that mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import make
import plait
from plait.cli import main


def convert(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, words)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [make.model(tmp_path / name, seed, layers=4) for seed, name in enumerate("abc")]


def test_row_33_bakllama(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layer slices become passthrough slices; a scale is that of what a layer adds to the stream."""
    a, b, _ = models
    old = {
        "layer_slices": [
            {"model": str(a), "start": 0, "end": 3},
            {"model": str(b), "start": 2, "end": 4, "scale": 0.5},
        ],
        "embedding_source": str(a),
        "lm_head_source": str(b),
    }
    path = tmp_path / "old.yml"
    path.write_text(yaml.safe_dump(old))
    code, text, told = convert(capsys, path)
    assert code == 0
    assert "o_proj and down_proj" in told
    merge, second = plait.merge(yaml.safe_load(text)), plait.open(b)
    assert merge.config["num_hidden_layers"] == 5
    for name, factor in (("self_attn.o_proj", 0.5), ("mlp.down_proj", 0.5), ("self_attn.q_proj", 1.0)):
        found = merge.read(f"model.layers.3.{name}.weight")
        assert found.equal(second.read(f"model.layers.2.{name}.weight") * factor)
    assert merge.read("model.embed_tokens.weight").equal(plait.open(a).read("model.embed_tokens.weight"))
    assert merge.read("lm_head.weight").equal(second.read("lm_head.weight"))


def test_written_out(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mergekit's internal form, with its nulls and mappings, becomes what a person would write, and merges to the same."""
    a, b, c = map(str, models)

    def wordy(path: str) -> dict[str, object]:
        return {"lora": None, "model": {"path": path, "revision": None}, "override_architecture": None}

    old = {
        "base_model": wordy(a),
        "dtype": "torch.float32",
        "merge_method": "task_arithmetic",
        "models": [
            {"model": wordy(b), "parameters": {"weight": [{"filter": None, "value": 0.5}]}},
            {"model": wordy(c), "parameters": {"weight": [{"filter": "mlp", "value": 0.25}, {"value": 0.75}]}},
        ],
        "modules": None,
        "parameters": {"normalize": [{"value": 0.0}]},
        "slices": None,
        "tokenizer_source": None,
    }
    path = tmp_path / "old.yml"
    path.write_text(yaml.safe_dump(old))
    code, text, _ = convert(capsys, path, "--json")
    assert code == 0
    clean = json.loads(text)
    assert clean == {
        "base_model": a,
        "dtype": "float32",
        "merge_method": "task_arithmetic",
        "models": [
            {"model": b, "parameters": {"weight": 0.5}},
            {"model": c, "parameters": {"weight": [{"filter": "mlp", "value": 0.25}, {"value": 0.75}]}},
        ],
        "parameters": {"normalize": 0.0},
    }


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"model": {"path": "x/y", "revision": "v1"}, "lora": None}, "x/y@v1"),
        ({"model": {"path": "x/y"}, "lora": {"path": "z", "revision": "2"}}, "x/y+z@2"),
        ({"model": "x/y", "override_architecture": "A"}, {"model": {"path": "x/y"}, "override_architecture": "A"}),
        ("model:x/y", "x/y"),
    ],
)
def test_references(model: object, wanted: object) -> None:
    """Every written-out reference has a short form, but for another architecture."""
    from plait.recipe.old import modern

    made, _ = modern({"merge_method": "passthrough", "models": [{"model": model}], "tokenizer_source": "union"})
    assert made["models"] == [{"model": wanted}]
    assert made["tokenizer"] == {"source": "union"}


def test_idle_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that never had an effect is left out, and that is told."""
    path = tmp_path / "old.yml"
    path.write_text(
        "merge_method: passthrough\nslices: [{sources: [{model: x/y, layer_range: [0, 2]}], residual_weight: 1}]\n"
    )
    code, text, told = convert(capsys, path, "-o", tmp_path / "new.yml")
    assert (code, text) == (0, "")
    assert "residual_weight had no effect" in told
    assert "residual" not in (tmp_path / "new.yml").read_text()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (
            ["--merge", "{b}", "--merge", "{c}", "--base-model", "{a}", "--density", "0.5", "--bf16"],
            {"parameters": {"weight": 1.0, "density": 0.5}, "dtype": "bfloat16", "merge_method": "ties"},
        ),
        (
            [
                "--merge",
                "{b}",
                "--merge",
                "{c}",
                "--method",
                "linear",
                "--weight",
                "1",
                "--weight",
                "3",
                "--no-normalize",
            ],
            {"models": [("{b}", {"weight": 1.0}), ("{c}", {"weight": 3.0})], "parameters": {"normalize": False}},
        ),
        (
            ["--merge", "{b}", "--merge", "{c}", "--method", "slerp", "--weight", "0.3"],
            {"parameters": {"t": 0.3}, "base_model": "{b}"},
        ),
        (
            ["--merge", "{b}", "--base-model", "{c}", "--method", "slerp", "--weight", "0.3", "--naive-count"],
            {"parameters": {"t": 0.3}, "base_model": "{c}"},
        ),
    ],
)
def test_row_34_flags(flags: list[str], wanted: dict, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The flags of mergekit-legacy give a recipe that merges; a weight that is not given is 1."""
    names = dict(zip("abc", map(str, models), strict=True))
    code, text, _ = convert(capsys, *(flag.format(**names) for flag in flags))
    assert code == 0
    found = yaml.safe_load(text)
    for key, value in wanted.items():
        if key == "models":
            value = [{"model": model.format(**names), "parameters": own} for model, own in value]
        assert found[key] == (value.format(**names) if isinstance(value, str) else value)
    assert plait.merge(found).read("model.norm.weight").numel()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layer_slices: []\n", "there are no layer slices"),
        ("layer_slices: [{model: a, start: 0}]\n", "a layer slice cannot be read"),
        ("layer_slices: [{model: a, start: 0, end: 2}]\nembedding_source: b\n", "embedding_source cannot be another"),
        ("layer_slices: [{model: a, start: 0, end: 2}]\nfoo: b\n", "no 'foo'"),
        ("- 1\n", "this is no recipe"),
        ("merge_method: ties\n", "models"),
        ("a: 1\n---\nb: 2\n", "holds no single recipe"),
    ],
)
def test_refused(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be converted is told in words, exit 2."""
    path = tmp_path / "old.yml"
    path.write_text(text)
    code, _, said = convert(capsys, path)
    assert code == 2
    assert told in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "nothing to convert"),
        (["--merge", "a", "--method", "tise"], "there is no method 'tise'"),
        (["--merge", "a", "--method", "slerp", "--weight", "1"], "two models and one weight"),
        (["--merge", "a", "--merge", "b", "--merge", "c", "--weight", "1", "--weight", "1"], "--weight does not fit"),
    ],
)
def test_flags_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that do not fit together are told in words, exit 2."""
    code, _, said = convert(capsys, *flags)
    assert code == 2
    assert told in said


def test_no_place(tmp_path: Path, refused: Callable[..., str]) -> None:
    """A new recipe that has no place on the disk is told, and nothing is printed in its stead."""
    recipe = tmp_path / "r.yml"
    recipe.write_text("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n")
    refused("new.yml cannot be written", "convert", recipe, "-o", tmp_path / "none" / "new.yml")
