"""Methods of a user's own file: registered for one process, checked, cited."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import make
from plait import methods
from plait.cli import main
from plait.errors import PlanError
from plait.facts import bibtex

METHOD = '''"""Keep the first model.

Reference: Nobody et al., Keeping the first ({year}), https://arxiv.org/abs/2401.00001
"""

from dataclasses import dataclass

from plait.method import PerModel, method, param


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Not looked at.", default=1.0)


@method(Params, gives="coefficients")
def {name}(p, _):
    return [{first}, *[0.0] * (len(p.weight) - 1)]
'''


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test loads is not there for the next."""
    yield
    methods.loaded.clear()


def written(folder: Path, name: str = "keep_first", first: str = "1.0") -> Path:
    path = folder / f"{name}_file.py"
    path.write_text(METHOD.format(name=name, first=first, year=2024))
    return path


def exits(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("more", "mend"), [("", "change its parameters"), (", 'leave it out'", "leave it out")])
def test_a_method_that_refuses(more: str, mend: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A ValueError is told before the work, as fact and mend; the mend is its second argument, if it has one."""
    path = written(tmp_path)
    text = path.read_text().replace("    return [1.0", f"    raise ValueError('it is odd'{more})\n    return [1.0")
    path.write_text(text)
    models = [make.model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("keep_first", *models))
    told = refused("keep_first: it is odd\n", "merge", recipe, tmp_path / "out", "--load", path)
    assert f"do:     {mend}; 'plait methods keep_first' tells" in told


def test_merge_with_a_loaded_method(tmp_path: Path) -> None:
    """`--load FILE` lets a recipe use the file's method; without it the recipe is refused."""
    models = [make.model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("keep_first", *models))
    assert exits("merge", recipe, tmp_path / "out", "--quiet") == 2
    assert exits("merge", recipe, tmp_path / "out", "--quiet", "--load", written(tmp_path)) == 0
    kept, first = load_file(tmp_path / "out" / "model.safetensors"), load_file(models[0] / "model.safetensors")
    assert all(torch.equal(kept[name], first[name]) for name in first)


@pytest.mark.parametrize("when", ["planning", "merging"])
def test_a_method_that_fails(when: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A bug in the user's own file is told with its line: while planning, or from a thread of the merge."""
    file = written(tmp_path, "mine", "[][len(p.weight)]")
    if when == "merging":
        file.write_text(file.read_text().replace("Params, gives", "Params, first=lambda pieces, p: None, gives"))
    recipe = make.write_json(tmp_path / "r.yml", make.recipe("mine", make.model(tmp_path / "a")))
    told = refused(f"{file}, line 18, mine failed", "merge", recipe, tmp_path / "out", "--load", file)
    assert "IndexError: list index out of range" in told
    assert not (tmp_path / "out").exists()


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plait methods --check` says that a good method keeps the contract, and what a bad one breaks, with exit 2."""
    assert exits("methods", "--check", written(tmp_path, "good")) == 0
    assert "good: keeps the contract" in capsys.readouterr().out
    assert exits("methods", "--check", written(tmp_path, "bad", "2.0")) == 2
    assert re.search(r"bad: breaks the contract\n  \S", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no method"),
        ("1 / 0", "ZeroDivisionError"),
        (METHOD.format(name="linear", first="1.0", year=2024), "there is a method 'linear' already"),
        (None, "there are no methods in"),
    ],
)
def test_refusals(text: str | None, words: str, tmp_path: Path) -> None:
    """A file that is not there, fails, defines nothing or takes a name is refused with the reason."""
    path = tmp_path / "mine_file.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PlanError) as caught:
        methods.load(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", methods.registry())
def test_bibtex(name: str) -> None:
    """Every method has a BibTeX entry with title and address, and the authors that its docstring names."""
    method = methods.registry()[name]
    entry = bibtex(method)
    assert entry.startswith(f"@misc{{{name},\n  ")
    assert ("\n  author = {" in entry) == (method.reference.count(", ") > 1)
    assert re.search(r"\n  title = \{.+\},\n  url = \{https://\S+\}", entry)
    assert ("eprint" in entry) == ("arxiv.org/abs" in entry)


def test_cite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plait cite` prints the entry of each method once, whatever the number of recipes, and needs no model."""
    paths = [make.write_json(tmp_path / f"{i}.yml", make.recipe("ties", "no/a", base="no/b")) for i in range(2)]
    for path in paths:
        make.write_json(path, make.recipe("ties", "no/a", base="no/b", parameters={"weight": 1.0}))
    assert exits("cite", *paths) == 0
    assert capsys.readouterr().out.count("@misc{ties,") == 1
