"""Layers dropped, repeated, shuffled: the recipe that is printed, and the model that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import make
import plait
from plait.cli import main
from plait.surgery.layers import drop, numbers, repeat, shuffle, upscale


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["surgery", *map(str, words)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def order(model: Path, sources: list[Path]) -> list[tuple[int, int]]:
    """Which layer of which source each layer of a model is, by its bytes."""
    opened, known = plait.open(model), [plait.open(s) for s in sources]
    name = "model.layers.{}.mlp.up_proj.weight"
    count = opened.config["num_hidden_layers"]
    found = []
    for layer in range(count):
        mine = opened.read(name.format(layer))
        found += [
            (s, i)
            for s, source in enumerate(known)
            for i in range(source.config["num_hidden_layers"])
            if torch.equal(source.read(name.format(i)), mine)
        ]
    assert len(found) == count
    return found


@pytest.fixture
def six(tmp_path: Path) -> Path:
    return make.model(tmp_path / "six", 0, layers=6)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("drop", "{0}", "1,3-4"), [0, 2, 5]),
        (("repeat", "{0}", "2-3"), [0, 1, 2, 3, 2, 3, 4, 5]),
        (("repeat", "{0}", "1", "--times", "3"), [0, 1, 1, 1, 2, 3, 4, 5]),
        (("upscale", "{0}", "--overlap", "2"), [0, 1, 2, 3, 2, 3, 4, 5]),
        (("upscale", "{0}"), [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]),
    ],
)
def test_operations(
    words: tuple[str, ...], wanted: list[int], six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operation writes the layers that it says, in their order, and prints the recipe that does the same."""
    out = tmp_path / "out"
    code, text, _ = run(capsys, *(word.format(six) for word in words), out)
    assert code == 0
    assert [layer for _, layer in order(out, [six])] == wanted
    plait.merge(yaml.safe_load(text)).save(tmp_path / "again")
    assert make.hashes(out) == make.hashes(tmp_path / "again")


def test_printed_only(six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an OUT, or with --dry-run, nothing is written but the file of --write-yaml."""
    code, text, _ = run(capsys, "drop", six, "0", tmp_path / "out", "--dry-run", "--write-yaml", tmp_path / "r.yml")
    assert code == 0
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "r.yml").read_text() == text
    code, text, _ = run(capsys, "drop", six, "5", "--json", "--fp16")
    data = json.loads(text)
    assert [each["layer"] for each in data["layers"]] == [0, 1, 2, 3, 4]
    assert data["recipe"]["dtype"] == "float16"


def test_row_33_layershuffle(six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each layer is from one of the models, in its place; the same seed gives the same, another another."""
    other = make.model(tmp_path / "other", 1, layers=6)
    words = ("-m", six, "-w", 0.5, "-m", other, "-w", 0.5)
    found = []
    for i, seed in enumerate((3, 3, 4)):
        assert run(capsys, "shuffle", tmp_path / f"out{i}", *words, "--random-seed", seed)[0] == 0
        found.append(order(tmp_path / f"out{i}", [six, other]))
    assert found[0] == found[1] != found[2]
    assert [layer for _, layer in found[0]] == list(range(6))
    assert {model for model, _ in found[0]} == {0, 1}


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 2.0], [1.0, 3.0]])
def test_shuffle_weights(weights: list[float]) -> None:
    """Models are drawn as often as their weights say; a random order has every layer once."""
    drawn = shuffle(4000, weights, 0, True)
    assert sorted(layer for _, layer in drawn) == list(range(4000))
    assert [layer for _, layer in drawn] != list(range(4000))
    assert np.mean([model for model, _ in drawn]) == pytest.approx(weights[1] / sum(weights), abs=0.03)


@pytest.mark.parametrize("count", [3, 8, 33])
def test_laws(count: int) -> None:
    """What is dropped is gone, what is repeated is there twice, depth up-scaling doubles the middle and nothing else."""
    assert drop(count, [0, 1]) == [(0, i) for i in range(2, count)]
    assert sorted(repeat(count, [1, 2], 2)) == sorted([*((0, i) for i in range(count)), (0, 1), (0, 2)])
    overlap = count - 2
    found = [layer for _, layer in upscale(count, overlap)]
    assert sorted(found) == sorted([*range(count), *range(1, count - 1)])
    assert numbers(f"0,1-{count - 1}", count) == list(range(count))


def test_prune_by_weights(six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies of a layer are what a model can best do without, by its weights: pruning undoes repeating."""
    assert run(capsys, "repeat", six, "4", tmp_path / "longer")[0] == 0
    code, _, said = run(capsys, "prune", tmp_path / "longer", 1, tmp_path / "out")
    assert code == 0
    assert "layers 5 go" in said
    assert make.hashes(tmp_path / "out") == make.hashes(six) or order(tmp_path / "out", [six]) == order(six, [six])


def test_prune_by_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a text, the layers go that add nothing to what goes through them; the angles are those of transformers' states."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plait.surgery.similarity import by_text

    made = make.tensors(0, layers=4, hidden=16, vocab=40)
    for name in made:
        if ".layers.1." in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            made[name] = made[name] * 1e-4
    folder = make.write(tmp_path / "model", made)
    text = " ".join(f"w{3 + i * 7 % 37}" for i in range(60))
    (tmp_path / "text.txt").write_text(text)
    code, recipe, said = run(capsys, "prune", folder, 1, "--text", tmp_path / "text.txt")
    assert code == 0
    assert "layers 1 go" in said
    assert [s["sources"][0]["layer_range"] for s in yaml.safe_load(recipe)["slices"]] == [[0, 1], [2, 4]]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        states = [s[0].double().numpy() for s in network(ids, output_hidden_states=True).hidden_states]
    found = by_text(folder, text, 1)
    for layer in range(3):  # the last state has the final norm in it
        a, b = states[layer], states[layer + 1]
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert found[layer] == pytest.approx(np.mean(np.arccos(np.clip(cosine, -1, 1))) / np.pi, abs=1e-6)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("drop", "{0}", "6"), "names no layers"),
        (("drop", "{0}", "4-2"), "names no layers"),
        (("drop", "{0}", "x"), "names no layers"),
        (("drop", "{0}", "0-5"), "no layer is left"),
        (("prune", "{0}", "6"), "no layer is left"),
        (("upscale", "{0}", "--overlap", "3"), "cannot be doubled"),
        (("shuffle", "-m", "{0}", "-w", "-1"), "cannot be probabilities"),
        (("shuffle", "-m", "{0}", "-m", "{0}", "-w", "1"), "each model needs its weight"),
        (("shuffle", "-m", "{0}", "-m", "{1}"), "differ in depth"),
    ],
)
def test_refused(
    words: tuple[str, ...], told: str, six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be done is told in words, exit 2."""
    two: Any = make.model(tmp_path / "two", 1)
    code, _, said = run(capsys, *(word.format(six, two) for word in words))
    assert code == 2
    assert told in said


def test_refused_before_the_work(six: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A file of weights cannot be run on a text, a recipe may have no place, a text no tokens: no model is written."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(" \n")
    refused("cannot be run", "surgery", "prune", six / "model.safetensors", 1, out, "--text", text)
    refused("the text has no tokens", "surgery", "prune", six, 1, out, "--text", text)
    refused("cannot be written", "surgery", "drop", six, "1", out, "--write-yaml", tmp_path / "none" / "r.yml")
