"""The house: what a file may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import plait
from plait.kernels import library
from plait.methods import registry

HOUSE = Path(plait.__file__).parent
OUTSIDE = packages_distributions()
#: from the ground up: a room imports from the rooms before it
ROOMS = [
    *(
        "errors",
        "types",
        "lazy",
        "layout",
        "kernels",
        "ops",
        "checkpoint",
        "arch",
        "recipe",
        "method",
        "matrices",
        "brick",
        "registry",
        "methods",
        "bricks",
        "fit",
        "strands",
        "align",
        "vocabulary",
        "plan",
    ),
    *(
        "device",
        "compute",
        "run",
        "journal",
        "blocks",
        "writer",
        "estimate",
        "facts",
        "output",
        "verify",
        "merged",
        "prepare",
        "multi",
        "reproduce",
        "plain",
        "raw",
        "publish",
        "front",
        "evaluate",
        "diff",
        "report",
        "surgery",
        "moe",
        "tokens",
        "export",
        "lora",
        "testing",
        "demo",
        "cli",
        "__init__",
    ),
    "__main__",
]
#: third-party packages at the top of a file
TOP = {
    "torch": {"evaluate", "diff", "report", "surgery", "lora", "testing", "demo"},
    "plait.lazy": {
        "brick",
        "bricks",
        "kernels",
        "ops",
        "checkpoint",
        "matrices",
        "methods",
        "vocabulary",
        "device",
        "compute",
        "run",
        "writer",
        "estimate",
        "moe",
        "export",
        "tokens",
    },
    "xxhash": {"verify", "journal", "writer"},
    "safetensors": {"demo"},
    "yaml": {"recipe", "output", "evaluate", "demo", "tokens"},
    "pydantic": {"recipe"},
    "pydantic_core": {"recipe"},
    "numpy": {"verify", "vocabulary", "evaluate", "ops", "methods", "diff", "moe", "tokens"},
    "click": {"cli"},
}
#: and inside of a function, where they are used
LAZY = {
    "torch": {"merged", "lazy", "checkpoint", "cli"},
    "huggingface_hub": {"checkpoint", "publish"},
    "gguf": {"checkpoint", "export"},
    "numpy": {"export", "lazy", "ops", "methods"},
    "jinja2": {"evaluate", "output", "diff", "report"},
    "transformers": {"merged", "demo"},
    "tokenizers": {"vocabulary"},
    "rich": {"cli", "demo"},
    "pydantic_core": {"cli"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether importing the file imports it) of every import statement."""
    tree = ast.parse(path.read_text("utf-8"))
    now = {
        id(n)
        for top in tree.body
        if not isinstance(top, ast.FunctionDef | ast.ClassDef | ast.If)
        for n in ast.walk(top)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in now) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = str(node.module)
            if module == "plait":
                yield from ((f"plait.{alias.name}", id(node) in now) for alias in node.names)
            else:
                yield module, id(node) in now


def room(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


FILES = sorted(HOUSE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports(path: Path) -> None:
    """A file imports from its own room and from rooms below it, and third-party packages where the design has them."""
    here = room(path)
    for name, at_once in imports(path):
        if name == "plait.lazy":
            assert here in TOP[name], f"{here} must do without PyTorch"
        top, _, rest = name.partition(".")
        if top == "plait" and rest:
            there = rest.split(".")[0]
            assert there in ROOMS, f"{there} has no place in the house yet"
            assert there == here or ROOMS.index(there) < ROOMS.index(here), f"{here} imports {name} from above"
        elif top in OUTSIDE and top != "plait":
            allowed = TOP.get(top, set()) | (set() if at_once else LAZY.get(top, set()))
            assert here in allowed, f"{here} must not import {name}" + (" at the top" if at_once else "")


@pytest.mark.parametrize("command", ["import plait", "from plait.cli import main; main(['--help'])"])
def test_instant(command: str) -> None:
    """`import plait` and `plait --help` load no heavy package."""
    heavy = {"torch", "transformers", "pydantic", "rich", "numpy", "yaml", "safetensors", "huggingface_hub"}
    code = f"import sys\ntry:\n    {command}\nexcept SystemExit: pass\nprint('loaded', *({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


def test_planning_loads_no_torch(tmp_path: Path) -> None:
    """A recipe is read, checked and planned, and every method loaded, without PyTorch and numpy, which load longer."""
    recipe = tmp_path / "recipe.yml"
    models = HOUSE / "demo" / "models"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {models}/base\nparameters: {{weight: 1}}\nmodels: [{{model: {models}/add}}]"
    )
    code = f"import sys, plait\nplait.merge({str(recipe)!r})\nfrom plait.methods import registry\nregistry()\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print({'torch', 'numpy'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


@pytest.mark.skipif(library() is None, reason="the kernels are not compiled on this machine")
@pytest.mark.parametrize(
    "method", ["linear", "karcher", "ties", "breadcrumbs", "sce", "dare_ties", "della", "passthrough"]
)
def test_merging_loads_no_torch(method: str, tmp_path: Path) -> None:
    """With the kernels these methods merge model folders without PyTorch."""
    models = HOUSE / "demo" / "models"
    base = "" if method in ("linear", "karcher", "passthrough") else f"base_model: {models}/base\n"
    names = ["add"] if method == "passthrough" else ["add", "rev"]
    sources = ", ".join(f"{{model: {models}/{name}}}" for name in names)
    given = {"karcher": "", "passthrough": "", "sce": "select_topk: 0.5", "linear": "weight: 1"}.get(
        method, "weight: 1, density: 0.5"
    )
    text = f"merge_method: {method}\n{base}parameters: {{{given}}}\nmodels: [{sources}]\n"
    code = f"import sys, plait\nplait.merge({text!r}).save({str(tmp_path / 'out')!r})\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", registry())
def test_one_file(name: str) -> None:
    """A method is one file: its name is the file's, its page the file's docstring, and no other file names it.

    Only `recipe/` does, since foreign kinds of recipe imply a method; in `export/`, linear is a way to scale positions.
    """
    path = HOUSE / "methods" / f"{name}.py"
    method = registry()[name]
    assert method.function.__module__ == f"plait.methods.{name}"
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))) == method.doc
    others = [
        p
        for p in FILES
        if room(p) not in ("methods", "recipe", "demo", "export") and f'"{name}"' in p.read_text("utf-8")
    ]
    assert others == []
