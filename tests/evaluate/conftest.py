"""Small tasks on the demo's models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.demo.score import HERE


@pytest.fixture(scope="session", autouse=True)
def _transformers() -> None:
    pytest.importorskip("transformers")


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the demo's models."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(HERE / "models" / name, tmp_path / "models" / name, dirs_exist_ok=True))

    return copy


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., Path]:
    """A file of the demo's questions of one skill."""

    def write(skill: str = "add", count: int = 20, **more: object) -> Path:
        rows = [json.loads(line) for line in (HERE / "items" / f"{skill}.jsonl").read_text().splitlines()[:count]]
        path = tmp_path / f"{skill}.jsonl"
        path.write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of about 1800 characters, with some that take several bytes."""
    words = [json.loads(line)["prompt"][4:-1] for line in (HERE / "items" / "src.jsonl").read_text().splitlines()[:30]]
    path = tmp_path / "text.txt"
    path.write_text(". ".join(words) + " – naïve 𝄞.", "utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, model: Callable[[str], Path]) -> Callable[..., Path]:
    """A recipe over two of the demo's models."""

    def write(weight: float = 0.7, comment: str = "") -> Path:
        path = tmp_path / "mix.yml"
        entries = "".join(
            f"  - {{model: {model(name)}, parameters: {{weight: {weight}}}}}\n" for name in ("add", "rev")
        )
        path.write_text(f"# {comment}\nmerge_method: task_arithmetic\nbase_model: {model('base')}\nmodels:\n{entries}")
        return path

    return write
