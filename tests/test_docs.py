"""The words are true: blocks of the pages run and print what is shown, generated pages are up to date, links resolve."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import plait
from plait.demo.score import score
from plait.demo.story import HERE, unpack, weave

ROOT = Path(__file__).parents[1]
HOUSE = Path(plait.__file__).parent


def program(name: str) -> ModuleType:
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN, GENERATE = program("run"), program("generate")
PAGES = [page.relative_to(ROOT).as_posix() for page in RUN.pages()]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_and_prints_what_is_shown(page: str) -> None:
    """Recipes are right, Python runs, commands print what stands under them."""
    text = (ROOT / page).read_text("utf-8")
    if "transformers" in "".join(re.findall(r"^```python\n.*?^```", text, re.M | re.S)):
        pytest.importorskip("transformers")
    assert RUN.rerun(text) == text


def test_generated_pages_are_up_to_date() -> None:
    """`python docs/generate.py` would change nothing."""
    assert GENERATE.stale() == []


def test_a_page_that_lies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong output is corrected; a wrong recipe, code that fails and a recipe that is not wrong as promised are refused."""
    told = '```yaml title="x.yml"\nmerge_method: linear\nmodels: [{model: demo/models/add}]\nparameters: {weight: 1}\n```\n'
    lie = f"{told}```console\n$ plait check x.yml\nx.yml: no problems, 39 tensors, 2 MB\n```\n"
    assert RUN.rerun(lie) == lie.replace("39", "38")
    for broken in (
        told.replace("linear", "linaer"),
        f"<!-- wrong: it is not -->\n{told}",
        "```python\n1 / 0\n```\n",
        "```sh\nplait methods linaer\n```\n",
    ):
        with pytest.raises(AssertionError, match="the block on line"):
            RUN.rerun(broken)
    monkeypatch.setattr(GENERATE, "DOCS", tmp_path)
    for folder in ("methods", "bricks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "methods" / "gone.md").write_text("of a method that is no more")
    assert set(GENERATE.stale()) == {*GENERATE.pages(), "methods/gone.md"}
    GENERATE.write()
    assert GENERATE.stale() == []


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, outside of code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_resolve(page: str) -> None:
    """Each link to another file or heading of the repository leads somewhere."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if "://" not in target and (not file.exists() or (anchor and anchor not in headings(file))):
            dead.append(target)
    assert dead == []


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml lists each page but those of single methods, which methods.md lists."""
    nav = re.findall(r"[\w/]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    pages = [page.removeprefix("docs/") for page in PAGES if re.fullmatch(r"docs/[^/]+", page)]
    assert sorted(nav) == sorted(pages)


def test_the_readme_shows_every_room() -> None:
    """The README's tree names each file and folder of the package, and nothing else."""
    tree = re.search(r"^src/plait/\n(.+?)^```", README, re.M | re.S)
    assert tree
    shown = {line.split()[0].rstrip("/") for line in tree[1].splitlines()}
    package = Path(plait.__file__).parent
    rooms = {p.name for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert shown == {room for room in rooms if not room.startswith("__")}


def test_the_readme_shows_the_demos_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has a row for each model and recipe of the demo, and the best merge scores what it says."""
    pytest.importorskip("transformers")
    rows = {name: numbers.split() for name, numbers in re.findall(r"^(\w+) +((?:[\d.]+ +){4}.*)$", README, re.M)}
    recipes = {path.stem for path in HERE.glob("recipes/*.yml")}
    assert rows.keys() == recipes | {path.parent.name for path in HERE.glob("models/*/config.json")}
    monkeypatch.chdir(unpack(tmp_path / "demo") / "recipes")
    best = next(name for name, numbers in rows.items() if numbers[-1] == "merge")
    weave(Path(f"{best}.yml"), tmp_path, lambda _: None)
    for number, found in zip(rows[best], score(tmp_path / best).values(), strict=False):
        # a question of 500 is 0.2; other CPUs round the model's run differently, and may answer a few questions otherwise
        assert abs(float(number) - 100 * found.share) < 1.0


def test_the_house_of_the_readme_is_this_one() -> None:
    """Every file and folder of the package has one line in the README's tree, and there is no other line."""
    tree = re.search(r"^src/plait/\n(.*?)^```", README, re.M | re.S)
    assert tree
    told = [line.split()[0] for line in tree[1].splitlines()]
    folders = {f"{path.name}/" for path in HOUSE.iterdir() if (path / "__init__.py").is_file()}
    assert sorted(told) == sorted({*folders, *(p.name for p in HOUSE.glob("*.py") if not p.name.startswith("__"))})
