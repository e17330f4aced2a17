"""Good merges are called good, broken ones broken, with the reason: on the bundled models, and on small ones made so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import make
import plait
from loras import lora
from plait.cli import main
from plait.diff.page import check
from plait.errors import ModelError
from plait.report import Report, report
from plait.report.build import as_json
from plait.report.page import page, write

DEMO = Path(plait.__file__).parent / "demo" / "models"
NAMES = ("add", "rev", "src")


def recipe(method: str, weight: float, base: bool = True, **more: Any) -> dict[str, Any]:
    """All three of the bundled models."""
    made = {"merge_method": method, "models": [{"model": str(DEMO / name)} for name in NAMES]}
    return {**made, **({"base_model": str(DEMO / "base")} if base else {}), "parameters": {"weight": weight, **more}}


def merged(out: Path, text: dict[str, Any]) -> Path:
    plait.merge(yaml.safe_dump(text)).save(out, card=False)
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(tmp_path_factory.mktemp("good") / "good", recipe("task_arithmetic", 0.7))


def look(out: Path, **options: Any) -> Report:
    return report(out, ranks=False, **options)


def reasons(out: Path, **options: Any) -> str:
    return "\n".join(f"{v.says} ({v.because})" for v in look(out, **options).reasons)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp", "breadcrumbs"])
def test_good(method: str, tmp_path: Path) -> None:
    """The merges of the demo, which score well, are good, and nearly all that is said of them says so."""
    text = yaml.safe_load((DEMO.parent / "recipes" / f"{method}.yml").read_text("utf-8"))
    beside = json.dumps(text).replace("../models/", f"{DEMO}/")
    made = look(merged(tmp_path / "out", json.loads(beside)))
    assert made.reasons == ()
    assert {v.about for v in made.verdicts if v.mark == "good"} >= {"finite", "norm", "cosine", "tensors", "vocabulary"}


def test_weights_sum_to_three(tmp_path: Path) -> None:
    """Weights that sum to 3 and are not divided by their sum make weights three times too large."""
    found = reasons(merged(tmp_path / "out", recipe("linear", 1.0, base=False, normalize=False)))
    assert "3.00 times as large as its parents'" in found
    assert "the recipe's weights sum to 3" in found


def test_piled_up(tmp_path: Path) -> None:
    """A change that is added three times is told, with whose it is; once each is good."""
    made = look(merged(tmp_path / "out", recipe("task_arithmetic", 3.0)))
    [reason] = made.reasons
    assert reason.about == "carried"
    assert "3.0 times" in reason.says
    assert look(merged(tmp_path / "once", recipe("task_arithmetic", 1.0))).verdict == "good"


def wreck(good: Path, out: Path, change: Callable[[make.Tensors], make.Tensors]) -> Path:
    """A copy of a merge with other weights."""
    shutil.copytree(good, out)
    made = change(load_file(good / "model.safetensors"))
    save_file({name: x.contiguous().clone() for name, x in made.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def swapped(made: make.Tensors) -> make.Tensors:
    other = {".layers.1.": ".layers.2.", ".layers.2.": ".layers.1."}
    return {n: made[n.replace(k, other[k])] if (k := n[5:15]) in other else x for n, x in made.items()}


def test_swapped_layers(good: Path, tmp_path: Path) -> None:
    """Two layers in each other's place are told, with the places."""
    found = reasons(wreck(good, tmp_path / "out", swapped))
    assert "layer 1 of out is its parents' layer 2, not layer 1" in found
    assert "layer 2 of out is its parents' layer 1, not layer 2" in found


def test_not_a_number(good: Path, tmp_path: Path) -> None:
    """One NaN is found, with its tensor, and does not hide what is wrong elsewhere."""

    def change(made: make.Tensors) -> make.Tensors:
        made["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
        made["model.layers.1.mlp.up_proj.weight"] *= 0
        return made

    found = reasons(wreck(good, tmp_path / "out", change))
    assert "NaN or infinity in 1 tensor of out (model.layers.0.mlp.up_proj.weight: 1 of " in found
    assert "nothing but zeros in 1 tensor of out, and not in its parents (model.layers.1.mlp.up_proj.weight)" in found


def test_nan_of_a_parent(tmp_path: Path) -> None:
    """NaN that comes from a parent is told as that parent's."""
    one, two = make.tensors(0), make.tensors(0)
    two["model.norm.weight"][0] = float("inf")
    folders = [make.write(tmp_path / name, made) for name, made in (("one", one), ("two", two))]
    plait.merge(make.recipe("linear", *folders)).save(tmp_path / "out", allow_nonfinite=True)
    made = look(tmp_path / "out")
    assert [v.says for v in made.reasons] == ["NaN or infinity in 1 tensor of out"]
    assert "NaN or infinity in 1 tensor of the parent two" in [v.says for v in made.verdicts]


def test_wrong_tokenizer(good: Path, tmp_path: Path) -> None:
    """A tokenizer whose ids are not the rows of the weights is found, and one with more ids than rows."""
    for name, change in (("moved", 7), ("beyond", 4000)):
        out = tmp_path / name
        shutil.copytree(good, out)
        data = json.loads((out / "tokenizer.json").read_text("utf-8"))
        vocab = data["model"]["vocab"]
        plain = [token for token in vocab if vocab[token] > 100]
        for token in plain[:40]:
            vocab[token] += change if name == "beyond" else 0
        if name == "moved":
            vocab[plain[0]], vocab[plain[1]] = vocab[plain[1]], vocab[plain[0]]
        (out / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    assert "the tokenizer of moved is not that of its weights" in reasons(tmp_path / "moved")
    assert "2 tokens have other ids" in reasons(tmp_path / "moved")
    assert "40 tokens of beyond have ids beyond its embedding" in reasons(tmp_path / "beyond")


def test_realigned_tokens_are_right(tmp_path: Path) -> None:
    """A merge with a union of tokenizers is compared with the rows that its recipe gives it."""
    one = make.tensors(0)
    ends = ("embed_tokens.weight", "lm_head.weight")
    two = {n: torch.cat([x, x[:4]]) if n.endswith(ends) else x for n, x in one.items()}
    folders = [make.write(tmp_path / name, made) for name, made in (("one", one), ("two", two))]
    words = make.tokenizer(20)
    vocab = words["model"]["vocab"]
    vocab["w3"], vocab["w17"] = 17, 3
    make.write_json(folders[1] / "tokenizer.json", words)
    text = make.recipe("linear", *folders, base=folders[0], tokenizer={"source": "union"})
    plait.merge(text).save(tmp_path / "out")
    made = look(tmp_path / "out")
    assert "each token has the row that it has in the recipe's vocabulary" in [v.says for v in made.verdicts]
    shutil.copy(folders[1] / "tokenizer.json", tmp_path / "out")
    assert "the tokenizer of out is not that of its weights" in reasons(tmp_path / "out")


def test_stacked(tmp_path: Path) -> None:
    """A stack of layers is compared with those that it was made of; repeated ones are no fault, a wrong order is."""
    base = make.tensors(0, layers=4)
    folder = make.write(tmp_path / "one", base)

    def stack(*ranges: tuple[int, int]) -> dict[str, Any]:
        slices = [{"sources": [{"model": str(folder), "layer_range": list(r)}]} for r in ranges]
        return {"merge_method": "passthrough", "slices": slices}

    out = tmp_path / "deeper"
    plait.merge(stack((0, 3), (1, 4))).save(out)
    assert look(out).reasons == ()
    plait.merge(stack((0, 1), (2, 3), (1, 2), (3, 4))).save(tmp_path / "shuffled")
    assert "1 layer of shuffled out of order" in reasons(tmp_path / "shuffled")


def test_models_of_two_depths(tmp_path: Path) -> None:
    """Of layers that come from different models each is compared with its own."""
    made = make.tensors(0, layers=3)
    one, two = make.write(tmp_path / "one", make.tensors(0, layers=2)), make.write(tmp_path / "two", made)
    slices = [{"sources": [{"model": str(m), "layer_range": r}]} for m, r in ((one, [0, 2]), (two, [2, 3]))]
    plait.merge({"merge_method": "passthrough", "slices": slices}).save(tmp_path / "out")
    data = as_json(look(tmp_path / "out"))
    assert data["verdict"] == "good"
    assert data["parents"][0]["name"] == "first of the sources"
    assert data["parents"][0]["cosine"] == 1.0


def test_lost_tensors(good: Path, tmp_path: Path) -> None:
    """Tensors that the recipe makes and the folder lacks are named."""
    name = "model.layers.3.mlp.up_proj.weight"
    out = wreck(good, tmp_path / "out", lambda made: {n: x for n, x in made.items() if n != name})
    found = reasons(out)
    assert "out lacks 1 tensor that its recipe makes" in found
    assert name in found


def test_ties(good: Path, tmp_path: Path) -> None:
    """A head that the config ties and that differs, and one that is neither stored nor tied, are broken."""
    stored = wreck(good, tmp_path / "stored", lambda m: {**m, "lm_head.weight": m["model.embed_tokens.weight"] * 1.5})
    assert "lm_head.weight and model.embed_tokens.weight differ, and the config ties them" in reasons(stored)
    shutil.copytree(good, tmp_path / "untied")
    config = json.loads((good / "config.json").read_text("utf-8"))
    make.write_json(tmp_path / "untied" / "config.json", {**config, "tie_word_embeddings": False})
    assert "has no output head" in reasons(tmp_path / "untied")


def test_templates(tmp_path: Path) -> None:
    """Parents with different chat templates, and a template with tokens that the merge lacks, are told."""
    one, two = (make.model(tmp_path / name, 0) for name in ("one", "two"))
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (two / "chat_template.jinja").write_text("<|im_start|>{{ messages }}")
    words = make.tokenizer(16)
    words["added_tokens"] = [{"id": 15, "content": "<|im_start|>", "special": True}]
    make.write_json(two / "tokenizer.json", words)
    plait.merge(make.recipe("linear", one, two, base=one)).save(tmp_path / "out")
    made = look(tmp_path / "out")
    [differ] = [v for v in made.verdicts if v.about == "template"]
    assert (differ.says, differ.because) == ("the chat templates of one and two differ", "out has that of one")
    shutil.copy(two / "chat_template.jinja", tmp_path / "out")
    assert "the chat template writes <|im_start|>, which out has no token for" in reasons(tmp_path / "out")


def test_checkpoints_of_one_training(tmp_path: Path) -> None:
    """Of a parent that another one went on from, the merge has several times the change, as that one has: nothing is piled up."""
    base, delta = make.tensors(0, hidden=64), make.tensors(1, hidden=64)
    folders = [
        make.write(tmp_path / name, {n: x + size * 0.05 * delta[n] for n, x in base.items()})
        for name, size in (("base", 0), ("early", 1), ("late", 5))
    ]
    for weight, verdict in ((0.5, "good"), (2.0, "broken")):
        out = tmp_path / str(weight)
        plait.merge(make.recipe("task_arithmetic", *folders[1:], base=folders[0], parameters={"weight": weight})).save(
            out
        )
        made = look(out)
        assert made.verdict == verdict
    assert [v.about for v in made.reasons] == ["carried"]


def test_zeros_that_were_asked_for(tmp_path: Path) -> None:
    """Matrices that a recipe scales to zero, as recipes for deeper models do, are told and are no fault."""
    model = make.model(tmp_path / "one", layers=3)
    scale = {"scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]}
    sources = [({"layer_range": [0, 2]}, {}), ({"layer_range": [1, 3]}, {"parameters": scale})]
    slices = [{"sources": [{"model": str(model), **where, **how}]} for where, how in sources]
    plait.merge({"merge_method": "passthrough", "slices": slices}).save(tmp_path / "out")
    made = look(tmp_path / "out")
    assert made.verdict == "good", made.reasons
    assert "nothing but zeros in 4 tensors of out, as the recipe's scale says" in [v.says for v in made.verdicts]


def test_unrelated_parents(tmp_path: Path) -> None:
    """The average of two models that began from different random weights is broken, although all its numbers are fine."""
    one, two = (make.model(tmp_path / f"m{seed}", seed, hidden=64) for seed in (0, 1))
    plait.merge(make.recipe("linear", one, two)).save(tmp_path / "out")
    assert "m0 and m1 are unrelated" in reasons(tmp_path / "out")


def test_adapter(tmp_path: Path) -> None:
    """A parent that is a base with an adapter is read as such: all of what it changed is in the merge."""
    base = make.model(tmp_path / "base", hidden=64)
    adapter = lora(tmp_path / "adapter", load_file(base / "model.safetensors"))
    text = make.recipe("task_arithmetic", f"{base}+{adapter}", base=base)
    plait.merge(text).save(tmp_path / "out")
    [_, parent] = as_json(look(tmp_path / "out"))["parents"]
    assert parent["carried"] == pytest.approx(1.0, abs=1e-3)


def test_of_another_tool(good: Path, tmp_path: Path) -> None:
    """A folder with mergekit's recipe is enough, and one without any is compared with models that are named."""
    shutil.copytree(good, tmp_path / "out")
    (tmp_path / "out" / "plait_config.yml").rename(tmp_path / "out" / "mergekit_config.yml")
    (tmp_path / "out" / "plait_provenance.json").unlink()
    assert look(tmp_path / "out").verdict == "good"
    (tmp_path / "out" / "mergekit_config.yml").unlink()
    made = look(tmp_path / "out", against=[str(DEMO / name) for name in ("base", *NAMES)])
    assert made.verdict == "good"
    assert [round(p["carried"] or 0, 1) for p in as_json(made)["parents"]] == [0, 0.7, 0.7, 0.7]


def test_paths_beside_the_recipe(tmp_path: Path) -> None:
    """Paths that a recipe gives from where it lies are found from the merge, as long as the recipe is there and the same."""
    for name in ("one", "two"):
        make.model(tmp_path / "models" / name, 0)
    (tmp_path / "recipes").mkdir()
    file = make.write_json(tmp_path / "recipes" / "r.yml", make.recipe("linear", "../models/one", "../models/two"))
    plait.merge(file).save(tmp_path / "merges" / "a" / "out")
    assert look(tmp_path / "merges" / "a" / "out").verdict == "good"
    make.write_json(file, make.recipe("linear", "../models/one", "../models/one/"))
    with pytest.raises(ModelError, match=r"what .* was made of cannot be had"):
        look(tmp_path / "merges" / "a" / "out")


def test_parents_that_changed(tmp_path: Path) -> None:
    """A parent that is not what was merged is told."""
    one, two = (make.model(tmp_path / name, 0) for name in ("one", "two"))
    plait.merge(make.recipe("linear", one, two)).save(tmp_path / "out")
    make.model(two, 3)
    assert f"the weights of {two} have changed since they were merged" in [
        v.says for v in look(tmp_path / "out").verdicts
    ]


def test_running(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity of a text next to the parents', and 20 tokens of writing; a wrecked merge reads worse than all of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("And the king said unto the people, Go ye up into the house of the LORD. " * 6)
    made = look(good, text=text, prompt="And the king said")
    assert made.verdict == "good"
    assert set(made.said.perplexity or {}) == {"base", *NAMES, "good"}
    assert made.said.text
    out = merged(tmp_path / "out", recipe("linear", 1.0, base=False, normalize=False))
    assert "the text surprises out far more than any of its parents" in reasons(out, text=text)


def test_perplexity_of_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that is a recipe has no folder of its own: its perplexity is not taken from somebody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inner = tmp_path / "inner.yml"
    inner.write_text(yaml.safe_dump(recipe("task_arithmetic", 0.7)))
    text = make.recipe("linear", inner, DEMO / "add", base=DEMO / "add")
    (tmp_path / "text.txt").write_text("And the king said unto the people, Go ye up.")
    made = look(merged(tmp_path / "out", text), text=tmp_path / "text.txt")
    assert {side.name for side in made.found.sides} == {"add", "inner.yml", "out"}
    assert set(made.said.perplexity or {}) == {"add", "out"}


def test_command(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0 for a good merge and 2 for a broken one, whose reason comes first; --json has all of it."""
    main_ends(["report", str(good), "--quiet"], 0)
    told = capsys.readouterr().out
    assert told.startswith("good is good\n")
    assert "0.70" in told
    out = merged(tmp_path / "out", recipe("linear", 1.0, base=False, normalize=False))
    main_ends(["report", str(out), "--quiet"], 2)
    assert capsys.readouterr().out.startswith("out is broken:\n    the weights of out are 3.00 times")
    main_ends(["report", str(good), "--quiet", "--json", "--no-ranks"], 0)
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == "good"
    assert [row["value"] for row in data["values"]] == [0.7, 0.7, 0.7]
    assert data["comparison"]["models"][0]["name"] == "base"


def main_ends(words: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "does not say what it was made of"),
        (("--recipe", "nowhere.yml"), "nowhere.yml"),
        (("--against", "no/such/place"), "there is no no/such/place"),
    ],
)
def test_refused(words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be looked at is told in words, and the exit code is 2."""
    main_ends(["report", str(make.model(tmp_path / "out")), *words], 2)
    assert told in capsys.readouterr().err


def test_missing_parent(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parents that are gone are told, with the ways on."""
    one, two = (make.model(tmp_path / name, 0) for name in ("one", "two"))
    plait.merge(make.recipe("linear", one, two)).save(tmp_path / "out")
    shutil.rmtree(two)
    main_ends(["report", str(tmp_path / "out")], 2)
    assert "name the parents with --against" in capsys.readouterr().err


def test_page(tmp_path: Path) -> None:
    """The page has the verdict, its reasons, the recipe's values by layer as lines, and what a comparison has; no script."""
    text = recipe("task_arithmetic", 0.7)
    text["models"][0]["parameters"] = {"weight": [0.2, 0.8]}
    check(tmp_path / "page.html")
    data = as_json(look(merged(tmp_path / "out", text)))
    write(data, tmp_path / "page.html")
    made = (tmp_path / "page.html").read_text("utf-8")
    assert "<title>out: good</title>" in made
    assert "weight for add, as the recipe gives it to each layer" in made
    assert made.count('<svg role="img"') == 5
    assert "<script" not in made
    assert "Layers and kinds" in made
    text["parameters"]["weight"] = 3.0
    text["models"][0].pop("parameters")
    broken = page(as_json(look(merged(tmp_path / "broken", text))))
    assert "is <b>broken</b>" in broken
    assert "3.0 times" in broken
