"""A merge in several stages: recipes of one file that name each other.

By default the stages stream into each other, and only the last one is written. With a folder to keep them, each stage is
written there, in the order of need, and read from there by the others; one that is there already is used again if it was made
from the same recipe, models, options and versions, and its bytes are those that were written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait.errors import OutputError, PlaitError, Problems, RecipeError, raise_all
from plait.journal import NAME as JOURNAL
from plait.merged import Merge
from plait.output.save import Saved
from plait.output.whole import differences, read_provenance
from plait.plan import Plan
from plait.prepare import Stage, prepare
from plait.recipe import Recipe, kinds


@dataclass(frozen=True)
class Made:
    """A stage that was written, or used again (`saved.untouched`). `why`: what made it necessary to write it anew."""

    name: str | None
    out: Path
    plan: Plan
    saved: Saved
    why: tuple[str, ...] = ()


#: writes a plan: (plan, folder, more options of `Merge.save`)
Write = Callable[..., Saved]


def _write(plan: Plan, out: Path, **how: Any) -> Saved:
    return Merge(plan).save(out, **how)


def multi(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    keep: str | os.PathLike[str] | None = None,
    lazy: bool = True,
    planning: Mapping[str, Any] | None = None,
    saving: Mapping[str, Any] | None = None,
    write: Write = _write,
) -> list[Made]:
    """Run a file of stages; the stage without a name, or the last one if all have names, goes to `out`.

    `keep`: a folder for the named stages; `out` may then be left out if all have names. `lazy`: use the stages that are there
    and fit. `planning` is for `prepare`, `saving` for `Merge.save`; `write` is called for what has to be written. Everything
    that can be found without weights is found before anything is written.
    """
    how, more = dict(planning or {}), dict(saving or {})
    checked = kinds.check(source, lenient=bool(how.get("lenient")))
    if not checked.recipes:
        found, do = kinds.MEANING[checked.kind], "write recipes, separated by '---'"
        raise RecipeError("this is no file of stages", wanted="recipes", found=found, do=do)
    last = checked.last
    target = Path(out).expanduser() if out is not None else None
    if target is None and (keep is None or last.name is None):
        what = f"the stage {last.name!r}" if last.name else "the stage without a name"
        do = "pass --out-path" if last.name is None else "pass --out-path, or -I to keep every stage"
        raise OutputError(f"there is no place for {what}", wanted="an output directory", found="none", do=do)
    if keep is None:
        assert target
        plan = prepare(source, **how)
        return [Made(last.name, target, plan, write(plan, target, **more))]
    recipes = {recipe.name: recipe for recipe in checked.recipes}
    places = {name: Path(keep).expanduser() / str(name) for name in recipes}
    if target:
        places[last.name] = target
    _check(recipes, places, last, how)
    order = _in_order(recipes)
    made: list[Made] = []
    for name in order:
        recipe = replace(recipes[name], text=_text(recipes, order, name))
        folders: dict[str, Stage] = {str(done.name): done.out for done in made if done.name}
        plan = prepare(recipe, stages=folders, **how)
        final = recipes[name] is last and target is not None
        made.append(_stage(name, plan, places[name], lazy and not final, final, more, write))
    return made


def _stage(
    name: str | None, plan: Plan, out: Path, lazy: bool, final: bool, more: Mapping[str, Any], write: Write
) -> Made:
    if final or name is None:
        return Made(name, out, plan, write(plan, out, **more))
    how = {"resume": lazy and not more.get("force"), "force": not lazy or bool(more.get("force"))}
    interrupted = (out / JOURNAL).exists()
    before = read_provenance(out)
    saved = write(plan, out, **{**more, **how, "stage": name})
    if not how["resume"] or saved.untouched or not (before or interrupted):
        return Made(name, out, plan, saved)
    why = differences(before, read_provenance(out)) if before else []
    return Made(
        name, out, plan, saved, tuple(why or ["it was interrupted" if interrupted else "its files were changed"])
    )


def _check(
    recipes: Mapping[str | None, Recipe], places: Mapping[str | None, Path], last: Recipe, how: Mapping[str, Any]
) -> None:
    """Plan every stage as it would stream, so that all mistakes are found before the first is written."""
    problems: list[PlaitError] = []
    for name, recipe in recipes.items():
        if name and (name in (".", "..") or "/" in name or "\\" in name or "\0" in name) and recipe is not last:
            what, do = f"{name!r} cannot be the name of a folder", "give the stage a plain name"
            problems.append(RecipeError(what, found=name, do=do, where=recipe.at("name")))
        try:
            prepare(recipe, stages={n: r for n, r in recipes.items() if n}, **how)
        except PlaitError as error:
            problems += error.problems if isinstance(error, Problems) else [error]
    told: dict[str, PlaitError] = {str(problem): problem for problem in problems}  # one may be found by several
    raise_all(told.values())
    if len(set(map(os.path.realpath, places.values()))) < len(places):
        raise OutputError(
            "two stages would go to one folder",
            wanted="a folder for each stage",
            found=", ".join(map(str, places.values())),
            do="choose another OUT or --intermediate-dir",
        )


def _needs(recipe: Recipe, recipes: Mapping[str | None, Recipe]) -> list[str]:
    """The stages that a recipe names as models."""
    return [ref.path for ref in recipe.references() if ref.path in recipes and ref.revision is None]


def _in_order(recipes: Mapping[str | None, Recipe]) -> list[str | None]:
    """The names, each after those that it needs; there are no circles, which `kinds` refuses."""
    order: dict[str | None, None] = {}

    def add(name: str | None) -> None:
        for needed in _needs(recipes[name], recipes):
            add(needed)
        order.setdefault(name)

    for name in recipes:
        add(name)
    return list(order)


def _text(recipes: Mapping[str | None, Recipe], order: list[str | None], name: str | None) -> str:
    """The documents that a stage needs, as they stand in the file, itself last: a recipe by itself, which makes the same."""
    needed, waiting = {name}, [name]
    while waiting:
        waiting = [n for w in waiting for n in _needs(recipes[w], recipes) if n not in needed]
        needed.update(waiting)
    lines = recipes[name].text.splitlines(keepends=True)
    begins = [i for i, line in enumerate(lines) if line.startswith("---")]
    parts = []
    for stage in order:
        if stage in needed and stage != name:
            parts.append(_document(recipes[stage], lines, begins))
    parts.append(_document(recipes[name], lines, begins))
    return "---\n".join(part if part.endswith("\n") else part + "\n" for part in parts)


def _document(recipe: Recipe, lines: list[str], begins: list[int]) -> str:
    """The lines of one document, without the mark before it."""
    where = recipe.at()
    at = where.line - 1 if where else 0
    begin = max((i for i in begins if i <= at), default=-1)
    stop = min((i for i in begins if i > at), default=len(lines))
    first = lines[begin].removeprefix("---").lstrip() if begin >= 0 else ""
    return first + "".join(lines[begin + 1 : stop])
