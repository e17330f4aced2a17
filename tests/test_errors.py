# ruff: noqa: E501  one line a case
"""Mistakes of a person, each made on purpose: the message has its parts, the exit code is 2, and nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import make
import messages
from plait.cli import main
from raised import PASSED_ON

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


def after(change: Callable[[Path], Any], *given: str) -> Case:
    """A command line, once something was done to the folder."""
    return lambda folder: [change(folder), *words(*given)(folder)][1:]


def mixture(**keys: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> Any:
        experts = [{"source_model": str(folder / m), "positive_prompts": [m]} for m in "ab"]
        return make.write_json(folder / "moe.yml", {"base_model": str(folder / "a"), "experts": experts} | keys)

    return write


def stages(*names: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> Any:
        recipes = [{**make.recipe("linear", folder / "a"), **({"name": name} if name else {})} for name in names]
        (folder / "stages.yml").write_text("\n---\n".join(map(json.dumps, recipes)))

    return write


def untold(folder: Path) -> None:
    for file in (folder / "a").glob("tokenizer*"):
        file.unlink()


def fewer(folder: Path) -> None:
    make.write(folder / "b", {k: x for k, x in make.tensors(1).items() if k != "model.norm.weight"})
    make.write_json(folder / "r.yml", make.recipe("linear", folder / "a", folder / "b"))


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
    "multi: OUT twice": (words("multi", "@/r.yml", "@/out", "--out-path", "@/out2"), "the output is given twice"),
    "multi: no OUT": (after(stages("x", ""), "multi", "@/stages.yml"), "there is no place for"),
    "multi: no name of a folder": (after(stages("../x", ""), "multi", "@/stages.yml", "@/out", "--intermediate-dir", "@/kept"), "cannot be the name of a folder"),
    "raw: both": (words("raw", "@/r.yml", "@/out", "-i", "-u"), "contradict each other"),
    "raw: other tensors": (after(fewer, "raw", "@/r.yml", "@/out"), "the inputs do not have the same tensors"),
    "raw: an adapter": (after(lambda f: make.write_json(f / "r.yml", make.recipe("linear", f"{f}/a+{f}/b", f / "b")), "raw", "@/r.yml", "@/out"), "has an adapter"),
    "extract: one model": (words("lora", "extract", "--model", "@/a", "--base-model", "@/a", "--out-path", "@/out"), "model and base are one"),
    "extract: all of the energy": (words("lora", "extract", "--model", "@/a", "--base-model", "@/b", "--out-path", "@/out", "--energy", "90"), "cannot be 90"),
    "extract: a pattern": (words("lora", "extract", "--model", "@/a", "--base-model", "@/b", "--out-path", "@/out", "-i", "("), "a pattern is no regular expression"),
    "lora merge: weights": (words("lora", "merge", "@/a", "@/b", "@/out", "-w", "1", "-w", "2", "-w", "3"), "each adapter needs its weight"),
    "lora merge: a method beside a recipe": (words("lora", "merge", "@/r.yml", "@/out", "--method", "ties"), "a recipe has its method"),
    "lora merge: no adapter": (words("lora", "merge", "@/a", "@/b", "@/out"), "is not an adapter"),
    "lora apply: no adapter": (words("lora", "apply", "@/a", "@/b", "@/out"), "is not an adapter"),
    "lora apply: weights": (words("lora", "apply", "@/a", "@/b", "@/out", "-w", "1", "-w", "2"), "each adapter needs its weight"),
    "moe: no such gate": (after(mixture(gate_mode="hiden"), "moe", "@/moe.yml", "@/out"), "is unknown"),
    "moe: no experts": (after(mixture(experts=[]), "moe", "@/moe.yml", "@/out"), "there are too few experts"),
    "moe: no class": (after(mixture(gate_mode="random", architecture="qwne"), "moe", "@/moe.yml", "@/out"), "no class that fits"),
    "tokens trim: nothing": (words("tokens", "trim", "@/a", "@/out"), "nothing is said about what stays"),
    "tokens trim: not its tokens": (after(lambda f: (f / "list").write_text("w5\nmine\n"), "tokens", "trim", "@/a", "@/out", "--keep", "@/list"), "of the tokens to keep"),
    "tokens add: there": (words("tokens", "add", "@/a", "@/out", "w5"), "already"),
    "tokens: no vocabulary": (after(untold, "tokens", "add", "@/a", "@/out", "new"), "has no vocabulary that can be changed"),
    "tokens transplant: no way": (words("tokens", "transplant", "@/a", "@/a", "@/out", "-a", "mena"), "there is no way"),
    "export: no type": (words("export", "gguf", "@/a", "@/out.gguf", "--type", "Q9"), "a GGUF file of type"),
    "export: no tokenizer": (after(untold, "export", "gguf", "@/a", "@/out.gguf"), "has no tokenizer.json"),
    "export: a tokenizer": (words("export", "gguf", "@/a", "@/out.gguf"), "cannot put into a GGUF file"),
    "report: no merge": (words("report", "@/a"), "does not say what it was made of"),
    "report: no parent": (words("report", "@/a", "--against", "@/none"), "there is no"),
    "verify: cut": (after(lambda f: os.truncate(f / "a" / "model.safetensors", 900), "verify", "@/a"), "is not a whole safetensors file"),
    "reproduce: nothing": (words("reproduce", "@/none"), "is no merge of plait"),
    "push: no owner": (words("push", "@/a", "mine"), "names no owner"),
    "push: no name": (words("push", "@/a", "me/is this a name"), "is no name for a repository"),
    "push: a request to a branch": (words("push", "@/a", "me/mine", "--create-pr", "--revision", "v1"), "a pull request cannot go to a branch"),
    "push: nothing": (words("push", "@/none", "me/mine"), "is not a model directory"),
    "surgery: no layers": (words("surgery", "drop", "@/a", "7-9", "@/out"), "names no layers"),
    "surgery: weights": (words("surgery", "shuffle", "-m", "@/a", "-m", "@/b", "-w", "1", "@/out"), "each model needs its weight"),
    "diff: no folder for the page": (words("diff", "@/a", "@/b", "--page", "@/none/page.html"), "there is no folder"),
    "convert: nothing": (words("convert"), "there is nothing to convert"),
    "eval: nothing to ask": (words("eval", "@/a"), "there is nothing to ask the models"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        make.model(tmp_path / name, seed)
    make.write_json(tmp_path / "r.yml", make.recipe("linear", tmp_path / "a"))
    (tmp_path / "r.gguf").write_bytes(b"GGUF" + bytes(100))
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, folder: Path, refused: Callable[..., str]) -> None:
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
    refused(said, *command)
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


def test_every_error_has_its_parts() -> None:
    """Each place in the source that makes an error gives what to do, and what was wanted or found."""
    found = messages.sites()
    assert len(found) > 300
    lacking = [
        f"{site.path}:{site.line}"
        for site in found
        if (site.path, site.error) not in PASSED_ON
        and not ("do" in site.parts and site.parts.keys() & {"wanted", "found"})
    ]
    assert lacking == []


SOURCE = """
class Odd(PlaitError): ...
WANTED = 'a_b'
def f(x, what, do='z'):
    do = 'before'
    do = 'one'
    if x.last_name:
        do = f'two {len(x)}'
    raise module.Odd(what, wanted=WANTED if x else None, do=do)
    do = 'after'
def g(x):
    f(x, f'{x.last_name!r} is *odd*')
"""


def test_messages_are_read_from_the_source() -> None:
    """A sentence is that of the call, with names for what is filled in; parts are those that lines before may give."""
    (site,) = messages.read({"x.py": SOURCE})
    assert (site.error, site.line, set(site.parts)) == ("Odd", 9, {"what", "wanted", "do"})
    (row,) = messages.rows(site)
    assert row == ("*last name* is \\*odd\\*", "a_b", "one / two *number*")
    assert "| *path* is not JSON |" in messages.page()


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
