"""The command line: options, exit codes, what is said and where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

import make
import plait
from plait.bricks import bricks
from plait.cli import cli, main
from plait.methods import registry


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""

    def run(*args: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    models = [make.model(tmp_path / name, seed) for seed, name in enumerate("ab")]
    made = make.recipe("slerp", models[1], base=models[0], parameters={"t": [0, 0.5, 1]})
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


@pytest.fixture
def broken(tmp_path: Path, recipe: Path) -> Path:
    """A recipe with a misspelt key on line 6."""
    path = tmp_path / "broken.yml"
    path.write_text(recipe.read_text() + "dtyp: float16\n")
    return path


#: every option of mergekit-yaml, in one of its spellings
OLD = """--allow-crimes --unsafe-truncate-embeddings --transformers-cache {tmp}/cache --lora-merge-cache {tmp}/lora
--lora-merge-dtype float16 --device auto --low-cpu-memory --read-to-gpu --out-shard-size 2K
--copy-tokenizer --clone-tensors --trust-remote-code --random-seed 3 --lazy-unpickle --write-model-card
--safe-serialization -v -v --quiet -j 2 --async-write --write-threads 2"""
NO = """--no-allow-crimes --no-unsafe-truncate-embeddings --no-cuda --no-low-cpu-memory --no-read-to-gpu --no-multi-gpu
--no-gpu-rich --no-copy-tokenizer --no-clone-tensors --no-trust-remote-code --no-lazy-unpickle --no-write-model-card
--no-safe-serialization --no-quiet --no-async-write --num-threads 1"""


def test_every_old_option(recipe: Path, tmp_path: Path) -> None:
    """Every option of mergekit-yaml is taken; the weights are those of a plain run, in shards of the size asked for."""
    args = [sys.executable, "-m", "plait", "merge", recipe, tmp_path / "out", *OLD.format(tmp=tmp_path).split()]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    plait.merge(recipe, shard_size=2000).save(tmp_path / "plain")
    assert len(make.hashes(tmp_path / "out")) > 1
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "plain")


def test_row_41_write_threads_ignored(call: Call, recipe: Path, tmp_path: Path) -> None:
    """`--write-threads` is taken, and what writes instead is said."""
    done = call("merge", recipe, tmp_path / "out", "--write-threads", "2")
    assert done.code == 0
    assert "note: --write-threads: the threads of --num-threads write what they compute" in done.err


def test_every_old_negation(call: Call, recipe: Path, tmp_path: Path) -> None:
    """Every negated option is taken too, and does what it says."""
    assert call("merge", recipe, tmp_path / "out", *NO.split()).code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "README.md" not in names
    assert "tokenizer.json" not in names


@pytest.mark.parametrize("size", ["5GB", "1.5B", "2G", "500MB", "1B", "1000"])
def test_row_38_shard_sizes(size: str, call: Call, recipe: Path) -> None:
    """Sizes may be written as people write them."""
    assert call("plan", recipe, "--out-shard-size", size).code == 0


def test_bad_size(call: Call, recipe: Path) -> None:
    """A size that is none is told with examples, exit 2."""
    done = call("plan", recipe, "--out-shard-size", "lots")
    assert done.code == 2
    assert "'lots' is not a size: write 5GB" in done.err


@pytest.mark.parametrize("verb", ["merge", "check", "plan", "explain"])
def test_errors(verb: str, call: Call, broken: Path, tmp_path: Path) -> None:
    """An error names file, line and column and what to do, on stderr, exit 2; nothing is written."""
    more = {"merge": [tmp_path / "out"], "explain": ["lm_head.weight"]}.get(verb, [])
    done = call(verb, broken, *more)
    assert done.code == 2
    assert done.out == ""
    first = done.err.splitlines()[0]
    assert first.startswith(f"error: {broken}:{len(broken.read_text().splitlines())}:1: ")
    assert "dtype" in done.err
    assert not (tmp_path / "out").exists()


def test_row_13_lenient(call: Call, broken: Path) -> None:
    """What mergekit passes over is an error, and a note with --lenient."""
    done = call("check", broken, "--lenient")
    assert done.code == 0
    assert "dtyp" in done.err


def test_merge_says_what_it_does(call: Call, recipe: Path, tmp_path: Path) -> None:
    """A merge tells its size before, and the result and a next step after."""
    done = call("merge", recipe, tmp_path / "out")
    assert done.code == 0
    assert "slerp of 2 models: 21 tensors" in done.err
    assert done.out.startswith(f"wrote {tmp_path / 'out'}: 21 tensors")
    assert "next: " in done.out


def test_quiet(call: Call, recipe: Path, tmp_path: Path) -> None:
    """--quiet prints nothing at all where nothing is wrong, and errors all the same."""
    assert call("merge", recipe, tmp_path / "out", "--quiet") == Done(0, "", "")
    again = call("merge", recipe, tmp_path / "out", "--quiet")
    assert again.code == 2
    assert "is not empty" in again.err
    assert call("merge", recipe, tmp_path / "out", "--quiet", "--force") == Done(0, "", "")


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["merge", "{recipe}", "{tmp}/out"], "files"),
        (["check", "{recipe}"], "ok"),
        (["plan", "{recipe}"], "steps"),
        (["explain", "{recipe}", "model.norm.weight"], "settings"),
        (["inspect", "{tmp}/a"], "modules"),
        (["methods", "slerp"], "parameters"),
    ],
)
def test_json(args: list[str], key: str, call: Call, recipe: Path, tmp_path: Path) -> None:
    """--json prints one JSON value on stdout and nothing else there."""
    done = call(*(arg.format(recipe=recipe, tmp=tmp_path) for arg in args), "--json")
    assert done.code == 0
    assert key in json.loads(done.out)


def test_check_several(call: Call, recipe: Path, broken: Path, tmp_path: Path) -> None:
    """Several recipes are checked in one go; one bad one makes the exit code 2, the others are told as fine."""
    worse = tmp_path / "worse.yml"
    worse.write_text("merge_method: slrep\nmodels: [{model: x/y/z}]\nparameters: {t: 0}\n")
    done = call("check", recipe, broken, worse)
    assert done.code == 2
    assert f"{recipe}: no problems" in done.out
    assert "3 files: 1 fine, 2 with problems" in done.out
    assert "did you mean slerp?" in done.err
    reports = json.loads(call("check", recipe, broken, worse, "--json").out)
    assert [report["ok"] for report in reports] == [True, False, False]
    assert reports[1]["problems"][0]["where"]["line"] == len(broken.read_text().splitlines())


def test_check_missing_file(call: Call, recipe: Path, tmp_path: Path) -> None:
    """A recipe that is not there is one of the problems, not the end of the check."""
    done = call("check", tmp_path / "nothing.yml", recipe)
    assert done.code == 2
    assert "nothing.yml" in done.err
    assert f"{recipe}: no problems" in done.out


def test_check_without_models(call: Call, tmp_path: Path) -> None:
    """--no-models checks what the recipe alone can tell, and looks at no model."""
    path = tmp_path / "recipe.yml"
    path.write_text("merge_method: linear\nmodels: [{model: not/here/at/all}]\nparameters: {weight: 1}\n")
    assert call("check", path, "--no-models").code == 0
    assert call("check", path).code == 2


def test_plan_lists_every_tensor(call: Call, recipe: Path) -> None:
    """The plan names every output tensor once, with its value of a gradient, and the totals."""
    lines = call("plan", recipe).out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(names) == sorted(make.tensors())
    assert any("layers.1.mlp.up_proj" in line and "t=1" in line for line in lines)
    assert lines[-1].startswith("21 tensors, 1 shard; reads ")


def test_explain(call: Call, recipe: Path) -> None:
    """`explain` names inputs, values and the line that each is from."""
    text = call("explain", recipe, "model.layers.1.mlp.up_proj.weight").out
    assert "layer 1 of" in text
    assert "t = 1" in text
    assert f"the recipe, {recipe}:" in text
    wrong = call("explain", recipe, "model.layers.1.mlp.up_prj.weight")
    assert wrong.code == 2
    assert "did you mean model.layers.1.mlp.up_proj.weight?" in wrong.err


def test_every_method_has_a_page(call: Call) -> None:
    """`methods` lists all methods and bricks, and each has a page with its paper."""
    listed = {line.split()[0] for line in call("methods").out.splitlines() if "  " in line}
    assert listed == {*registry(), *bricks()}
    for name in listed:
        page = call("methods", name)
        assert page.code == 0
        assert "http" in page.out, name
    assert "did you mean slerp?" in call("methods", "slrep").err


def test_row_33_every_verb_has_help(call: Call) -> None:
    """Each verb explains itself, and stands in the list of verbs with a line of its own."""
    listing = call("--help").out
    verbs = cli.list_commands(click.Context(cli))
    assert {"check", "demo", "explain", "inspect", "merge", "methods", "plan", "schema"} <= set(verbs)
    for verb in verbs:
        assert call(verb, "--help").out.startswith(f"Usage: plait {verb}")
        assert f"\n  {verb} " in listing


def test_unknown_verb(call: Call) -> None:
    """A misspelt verb is answered with the right one, exit 2."""
    done = call("mrege", "x", "y")
    assert done.code == 2
    assert "there is no verb 'mrege'; did you mean merge?" in done.err


def test_schema(call: Call) -> None:
    """The schema is JSON and describes recipes."""
    assert "merge_method" in json.loads(call("schema").out)["properties"]


def test_broken_pipe(tmp_path: Path) -> None:
    """A reader that goes away ends an output that a pipe cannot hold, without a word."""
    made = make.recipe("linear", make.model(tmp_path / "a", layers=30), dtype="float16")
    plan = f"{sys.executable} -m plait plan {make.write_json(tmp_path / 'recipe.yml', made)} --json"
    done = subprocess.run(["bash", "-c", f"{plan} | head -1"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_bug_of_ours(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not the user's mistake keeps its traceback: it is not dressed up as one."""

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("plait.prepare.make_plan", fault)
    with pytest.raises(ZeroDivisionError):
        main(["plan", str(recipe)])


@pytest.mark.parametrize("words", [["inspect", "{0}"], ["diff", "{1}", "{0}"], ["merge", "{2}", "{0}"]], ids=str)
def test_impossible_names(words: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    """A name that the system does not take is told, wherever it stands."""
    model = make.model(tmp_path / "a")
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("linear", model))
    refused("name too long", *(word.format(tmp_path / ("n" * 300), model, recipe) for word in words))


def test_full_standard_output(tmp_path: Path) -> None:
    """What cannot be printed, for the disk is full, is told once, exit 2."""
    command = f"ulimit -f 0; exec {sys.executable} -m plait methods > {tmp_path / 'said'}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the system refuses a file\n")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 4
