"""The demo, step by step: lay out models and recipes in a directory, merge by every recipe there, score all models.

OUT/models/     base and three specialists
OUT/recipes/    one YAML file a merge; edit them, add your own, play the demo again
OUT/merged/     one model directory a recipe, with its card
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import plait
from plait.demo.score import HERE, SKILLS, Score, Tick, score, silent
from plait.errors import OutputError, reason
from plait.evaluate.network import require_transformers

ABOUT = {"base": "their common parent, which knows a little of all three skills"} | {
    skill.name: f"base, trained further on one skill: {skill.about}" for skill in SKILLS
}
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the demo and its scores, by skill."""

    name: str
    about: str
    merge: bool
    path: Path
    scores: Mapping[str, Score]

    @property
    def mean(self) -> float:
        """The mean share of right answers over the skills, in [0, 1]."""
        return sum(score.share for score in self.scores.values()) / len(self.scores)

    @property
    def error(self) -> float:
        """Standard error of `mean`, from the binomial errors of the skills."""
        return float(sum(score.error**2 for score in self.scores.values()) ** 0.5 / len(self.scores))


@dataclass(frozen=True, slots=True)
class Story:
    """What the demo found: base, specialists, merges, in this order; each skill's specialist has the skill's name."""

    out: Path
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name and not row.merge)

    @property
    def merges(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.merge)

    @property
    def best(self) -> Row:
        """The merge with the best mean, the first of equals."""
        return max(self.merges, key=lambda row: row.mean)

    def kept(self, row: Row) -> float | None:
        """The share that `row` has of what the specialists gained over the base.

        0 is as good as the base, 1 as good as each specialist at its own skill; None if the specialists gained nothing.
        """
        base = self.row("base").mean
        own = sum(self.row(skill.name).scores[skill.name].share for skill in SKILLS) / len(SKILLS)
        return (row.mean - base) / (own - base) if own > base else None


def play(
    out: Path | str,
    count: int | None = None,
    say: Say = silent,
    progress: Callable[[int], AbstractContextManager[Tick]] = lambda total: nullcontext(silent),
) -> Story:
    """Play the demo in the directory `out`, with the first `count` items of each skill (all 500 by default).

    `say` gets each line of the story; `progress(total items)` is entered while models are scored, and told of each
    batch. Recipes that are already in `out` are used as they are. The working directory is their folder meanwhile,
    for they name their models relative to it. Raises OutputError when `out` holds something else.
    """
    require_transformers()
    out = unpack(Path(out))
    recipes = out / "recipes"
    with inside(recipes):
        say(f"Four small models, in {out / 'models'}:")
        for name, about in ABOUT.items():
            say(f"  {name:<6}{about}")
        say("")
        say(f"Merged by the recipes in {recipes}:")
        merges = [weave(recipe, out / "merged", say) for recipe in sorted(recipes.glob("*.y*ml"))]
        models = [(name, about, False, out / "models" / name) for name, about in ABOUT.items()]
        models += [(name, about, True, out / "merged" / name) for name, about in merges]
        with progress(len(models) * sum(len(skill.items(count)) for skill in SKILLS)) as tick:
            rows = [Row(*model, scores=score(model[-1], count=count, tick=tick)) for model in models]
    return Story(out, tuple(rows))


def weave(recipe: Path, out: Path, say: Say) -> tuple[str, str]:
    """Merge by the file `recipe` into a directory of its name in `out`; returns the name and the recipe's first comment."""
    start = time.perf_counter()
    plait.merge(recipe).save(out / recipe.stem, force=True)
    seconds = time.perf_counter() - start
    first = recipe.read_text("utf-8").splitlines()[0]
    about = first.lstrip("# ") if first.startswith("#") else ""
    say(f"  {recipe.stem:<16} {about} ({seconds:.1f} s)")
    return recipe.stem, about


def unpack(out: Path) -> Path:
    """Lay out models and recipes in `out` and return its absolute path; recipes that are there stay as they are."""
    ours = os.path.isdir(out / "recipes") and os.path.isdir(out / "models" / "base")
    if os.path.exists(out) and not ours and (not os.path.isdir(out) or os.listdir(out)):
        raise OutputError(
            f"{out} is not a directory of the demo",
            wanted="a new or empty directory",
            found="other files" if out.is_dir() else "a file",
            do="choose another one: --out DIR",
        )
    try:
        for source in [*HERE.glob("recipes/*"), *HERE.glob("models/**/*")]:
            target = out / source.relative_to(HERE)
            if source.is_file() and not (target.exists() and target.suffix == ".yml"):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(
            f"cannot write the demo to {out}", found=reason(error), do="choose another one: --out DIR"
        ) from error
    return out.resolve()


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in `directory` for a while."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
