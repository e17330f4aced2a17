# ruff: noqa: E501  one line a case
"""Mistakes of a person, each made on purpose: the message has its parts, the exit code is 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import make
from plait.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text("utf-8")
Case = Callable[[Path], Any]  # gets a folder with the models a and b; returns a recipe, or the words of a command line


def merge(method: str = "linear", *models: str, **rest: Any) -> Case:
    return lambda folder: make.recipe(method, *(folder / m for m in models or ("a", "b")), **rest)


def text(words: str) -> Case:
    """A recipe's own words, `A` and `B` being the models."""
    return lambda folder: words.replace("A", str(folder / "a")).replace("B", str(folder / "b"))


def spoilt(name: str, change: Callable[[Path], Any], **rest: Any) -> Case:
    def case(folder: Path) -> Any:
        change(folder / name)
        return make.recipe("linear", folder / "a", folder / "b", **rest)

    return case


def nan(folder: Path) -> None:
    made = make.tensors(1)
    made["model.norm.weight"][0] = float("nan")
    make.write(folder, made)


def config(**keys: Any) -> Callable[[Path], Any]:
    return lambda folder: make.write_json(folder / "config.json", make.config(make.tensors()) | keys)


def full(folder: Path) -> Any:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    return make.recipe("linear", folder / "a")


def words(*given: str) -> Case:
    return lambda folder: [word.replace("@", str(folder)) for word in given]


#: what the page says of it -> (how it comes about, words of the message)
CASES: dict[str, tuple[Case, str]] = {
    "no recipe": (words("merge", "@/none.yml", "@/out"), "there is no recipe"),
    "not YAML": (text("merge_method: [linear\n"), "cannot be read as YAML"),
    "not text": (words("merge", "@/a/model.safetensors", "@/out"), "the recipe is not text"),
    "too deep": (text("a: " + "[" * 100), "too large or too deep"),
    "aliases": (text("a: &a [x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p] * 8)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True))), "too large or too deep"),
    "a tag": (text("merge_method: !!python/object/apply:os.system [x]\n"), "is not understood in a recipe"),
    "a key twice": (text("merge_method: linear\nmerge_method: ties\n"), "is written twice"),
    "unknown key": (merge(dype="float32"), "is not a key of a recipe"),
    "unknown method": (merge("linaer"), "is unknown"),
    "unknown parameter": (merge(parameters={"weight": 1, "wieght": 2}), "has no parameter"),
    "missing parameter": (merge("linear", parameters={}), "needs 'weight'"),
    "parameter out of range": (merge("ties", base="B", parameters={"weight": 1, "density": 50}), "cannot be 50"),
    "no base": (merge("ties", parameters={"weight": 1, "density": 0.5}), "needs a base_model"),
    "unknown dtype": (merge(dtype="bf17"), "bf17"),
    "no dtype for weights": (merge(out_dtype="int64"), "int64"),
    "weights that cancel": (text('merge_method: linear\nmodels:\n- {model: "A", parameters: {weight: 1}}\n- {model: "B", parameters: {weight: -1}}\n'), "sum to 0"),
    "a slow pattern": (merge(parameters={"weight": [{"filter": "/(a+)+$/", "value": 1}, {"value": 1}]}), "is not a regular expression"),
    "layers it lacks": (text('merge_method: passthrough\nslices:\n- sources: [{model: "A", layer_range: [0, 9]}]\n'), "does not have the layers"),
    "layers backwards": (text('merge_method: passthrough\nslices:\n- sources: [{model: "A", layer_range: [2, 1]}]\n'), "holds no layer"),
    "no model": (merge("linear", "a", "none"), "there is no"),
    "no weights": (spoilt("b", lambda f: (f / "model.safetensors").unlink()), "has no weights"),
    "cut weights": (spoilt("b", lambda f: os.truncate(f / "model.safetensors", 900)), "is not a whole safetensors file"),
    "broken config": (spoilt("b", lambda f: (f / "config.json").write_text("{")), "is not JSON"),
    "odd config": (spoilt("b", lambda f: (f / "config.json").write_text("[]")), "does not hold a JSON object"),
    "no class": (spoilt("b", config(architectures=[3])), "names no class"),
    "another architecture": (spoilt("b", config(architectures=["GPT2LMHeadModel"], model_type="gpt2")), "different architectures"),
    "other shapes": (spoilt("b", lambda f: make.model(f, hidden=16)), "differ"),
    "broken tokenizer": (spoilt("b", lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), tokenizer={"source": "union"}), "holds no vocabulary"),
    "NaN": (spoilt("b", nan), "values that are not finite"),
    "template": (merge(chat_template="chadml"), "the chat_template cannot be used"),
    "template that is none": (merge(chat_template="{% for x in messages %} never ended"), "cannot be parsed"),
    "no adapter": (merge("linear", "a", "b+no/such/adapter"), "there is no"),
    "OUT is full": (full, "is not empty"),
    "OUT is a file": (words("merge", "@/r.yml", "@/r.yml"), "OUT is a file"),
    "OUT is an input": (words("merge", "@/r.yml", "@/a", "--force"), "would overwrite an input"),
    "no card": (words("card", "@/a"), "is no merge of plait"),
    "not to be reproduced": (words("reproduce", "@/a"), "is no merge of plait"),
    "nothing to verify": (words("verify", "@/none"), "is no model directory"),
    "no tensor": (words("explain", "@/r.yml", "model.nrom.weight"), "the output has no tensor"),
    "unknown method's page": (words("methods", "linaer"), "there is no merge method"),
    "no GGUF of that": (words("inspect", "@/r.gguf"), "GGUF"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        make.model(tmp_path / name, seed)
    make.write_json(tmp_path / "r.yml", make.recipe("linear", tmp_path / "a"))
    (tmp_path / "r.gguf").write_bytes(b"GGUF" + bytes(100))
    return tmp_path


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, no traceback; what is wrong, what was wanted or found, and what to do; nothing is written or changed."""
    case, said = CASES[name]
    made = case(folder)
    if isinstance(made, list):
        command = made
    else:
        (folder / "recipe.yml").write_text(
            made if isinstance(made, str) else json.dumps(made).replace('"B"', f'"{folder}/b"')
        )
        command = ["merge", str(folder / "recipe.yml"), str(folder / "out")]
    before = state(folder)
    with pytest.raises(SystemExit) as ended:
        main(command)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told
    assert "Traceback" not in told
    assert re.search(r"^error: .+", told, re.M)
    assert re.search(r"^  (wanted|found): +\S", told, re.M) or re.search(r"^  do: +\S", told, re.M)
    after = state(folder)
    assert after == before
    assert said in PAGE, "docs/errors.md does not tell of it"


def test_a_class_that_is_given_mends_one_that_is_odd(folder: Path) -> None:
    """`override_architecture` does for a config whose `architectures` is odd what the message says."""
    config(architectures=[3])(folder / "b")
    named = {"model": {"path": str(folder / "b")}, "override_architecture": "LlamaForCausalLM"}
    make.write_json(folder / "recipe.yml", make.recipe("linear", folder / "a") | {"models": [{"model": named}]})
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(folder / "recipe.yml"), str(folder / "out"), "--quiet"])
    assert ended.value.code == 0
    assert json.loads((folder / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_page_has_words_of_messages() -> None:
    """Every message that the page's table quotes is one that plait's code has."""
    code = " ".join(path.read_text("utf-8") for path in (Path(__file__).parents[1] / "src" / "plait").rglob("*.py"))
    table = PAGE.split("## Every kind of mistake", 1)[1]
    quoted = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    known = {said for _, said in CASES.values()}
    lost = [
        words
        for words in quoted
        if words.strip("…` ") not in code and not any(k in words for k in known) and words != "the message says"
    ]
    assert lost == []
