"""What every method makes of the demo's models: right answers at each skill, share of the specialists' gain kept, seconds.

    python benchmarks/methods.py [--methods ties,linear] [--count 500] [--peer PATH/TO/mergekit-yaml] [--plot FILE.svg]

Methods run at their defaults but for `CHOICES`, on base, add, rev and src, and print as one Markdown table by name; each brick
stands around `task_arithmetic`. Seconds are CPU time, the best of three merges in memory, planning included. The peer's models
are scored by the same code.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import plait
from plait.bricks import bricks
from plait.demo.score import HERE, SKILLS, score
from plait.demo.story import Row, Story
from plait.method import REQUIRED
from plait.methods import registry

SPECIALISTS = tuple(skill.name for skill in SKILLS)
PAIR = {"base_model": "add", "models": ("rev",)}
TRIM = "at its default, 1, it drops nothing"
TWO = "takes two models"
#: method -> what differs from the defaults, and why: parameters, `models`, `base_model`
CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "arcee_fusion": (PAIR, f"{TWO}: from add towards rev"),
    "breadcrumbs": ({"density": 0.9}, TRIM),
    "breadcrumbs_ties": ({"density": 0.9}, TRIM),
    "dare_linear": ({"density": 0.5}, TRIM),
    "dare_ties": ({"density": 0.5}, TRIM),
    "della": ({"density": 0.5}, TRIM),
    "della_linear": ({"density": 0.5}, TRIM),
    "nearswap": (PAIR | {"t": 0.001}, f"{TWO}: from add towards rev; t has no default"),
    "nuslerp": ({"models": ("add", "rev")}, f"{TWO}: add and rev"),
    "passthrough": ({"models": ("add",)}, "takes one model: add, unchanged"),
    "slerp": (PAIR | {"t": 0.5}, f"{TWO}: half way from add to rev; t has no default"),
    "ties": ({"density": 0.5}, TRIM),
    "scale": ({"factor": 0.5}, "it has no default"),
    "star": ({"weight": 0.33}, "the paper averages"),
    "subspace_boost": ({"then": "norm_guard"}, "it enlarges the change"),
}
#: the methods that mergekit 0.1.5 has, too
THEIRS = (
    "arcee_fusion breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear karcher linear model_stock multislerp "
    "nearswap nuslerp passthrough ram ramplus_tl sce slerp task_arithmetic ties"
)


def recipe(name: str) -> dict[str, Any]:
    """The method's recipe: all specialists, the base where there is a use for it, weights that have no default at 1."""
    if name in bricks():
        values = dict(CHOICES.get(name, ({}, ""))[0])
        weight, then = values.pop("weight", 1.0), values.pop("then", None)
        around = {bricks()[name].at: [{name: values} if values else name, *([then] if then else [])]}
        return {**recipe("task_arithmetic"), "parameters": {"weight": weight}, **around}
    method, (given, _) = registry()[name], CHOICES.get(name, ({}, ""))
    values = {p.name: 1.0 for p in method.parameters if p.name == "weight" and p.default is REQUIRED} | given
    models, base = values.pop("models", SPECIALISTS), values.pop("base_model", "base")
    return {
        "merge_method": name,
        **({} if method.base == "ignored" else {"base_model": str(HERE / "models" / base)}),
        "models": [{"model": str(HERE / "models" / m)} for m in models],
        **({"parameters": values} if values else {}),
        "dtype": "bfloat16",
    }


def merged(name: str, out: Path, count: int | None) -> tuple[Row, float]:
    """The merge's scores, and the CPU seconds that it takes."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()  # others may use the cores meanwhile
        for _ in plait.merge(recipe(name)):
            pass
        seconds.append(time.process_time() - begun)
    plait.merge(recipe(name)).save(out / name)
    return Row(name, "", True, out / name, score(out / name, count=count)), min(seconds)


def peer(command: str, name: str, out: Path, count: int | None) -> Row | None:
    """The scores of the peer's merge by the same recipe; None where it fails, with its last words on standard error."""
    path = out / f"{name}.yml"
    path.write_text(yaml.safe_dump(recipe(name)))
    done = subprocess.run(
        [command, path, out / name, "--random-seed", "0"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        print(f"{command} fails on {name}: {words[-1] if words else done.returncode}", file=sys.stderr)
        return None
    return Row(name, "", True, out / name, score(out / name, count=count))


def table(story: Story, seconds: dict[str, float], theirs: dict[str, Row | None]) -> Iterator[str]:
    """The lines of a Markdown table: base and specialists, then the merges by name."""
    titles = ["model", *SPECIALISTS, "mean", "gain kept", "seconds", *(["mergekit's mean"] if theirs else [])]
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"
    for row in story.rows:
        cells = [row.name, *(f"{100 * row.scores[skill].share:.1f}" for skill in SPECIALISTS), f"{100 * row.mean:.1f}"]
        cells.append(f"{round(story.kept(row) or 0, 2) + 0:.0%}")  # + 0: no -0
        cells.append(f"{seconds[row.name]:.2f}" if row.merge else "")
        if theirs:
            found = theirs.get(row.name) if row.merge else None
            cells.append(f"{100 * found.mean:.1f}" if found else "fails" if row.merge and row.name in theirs else "")
        yield f"| {' | '.join(cells)} |"


def choices(names: Sequence[str]) -> Iterator[str]:
    """The lines of a Markdown table of what was not left at its default."""
    yield "| method | not at its default | because |"
    yield "|---|---|---|"
    for name in names:
        if name in CHOICES:
            given, reason = CHOICES[name]
            words = [f"{k}: {v if isinstance(v, (str, float)) else ' and '.join(v)}" for k, v in given.items()]
            yield f"| {name} | {', '.join(words)} | {reason} |"


def plot(story: Story, file: Path) -> None:
    """Draw the table: for each merge its skills as marks and their mean as a bar, next to the base and the specialists."""
    import matplotlib

    matplotlib.rcParams |= {"svg.hashsalt": "plait", "font.family": "DejaVu Sans", "font.size": 9}
    from matplotlib.figure import Figure

    merges = story.merges[::-1]
    figure = Figure(figsize=(7.5, 1.2 + 0.24 * len(merges)), layout="constrained")
    axes = figure.subplots()
    axes.barh([m.name for m in merges], [100 * m.mean for m in merges], color="#c9d3dc", height=0.7, label="mean")
    for skill, mark, colour in zip(SPECIALISTS, "o^s", ("#0b6e99", "#b5561c", "#3d7a3d"), strict=True):
        shares = [100 * m.scores[skill].share for m in merges]
        axes.plot(shares, range(len(merges)), mark, color=colour, markersize=4.5, label=skill)
    own = sum(story.row(skill).scores[skill].share for skill in SPECIALISTS) / len(SPECIALISTS)
    for share, label, style in (
        (story.row("base").mean, "base, mean", ":"),
        (own, "specialists at their own skills, mean", "--"),
    ):
        axes.axvline(100 * share, color="#555555", linestyle=style, linewidth=1, label=label)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(merges) - 0.4), xlabel="right answers, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--methods", default=",".join([*registry(), *bricks()]), help="names, with commas; all by default"
    )
    parser.add_argument("--count", type=int, help="questions a skill; all 500 by default")
    parser.add_argument("--peer", help="mergekit-yaml of an environment of its own")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw; needs matplotlib")
    options = parser.parse_args()
    names = options.methods.split(",")
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            sys.exit("--plot needs matplotlib, which is not installed: pip install matplotlib")
    with tempfile.TemporaryDirectory() as temporary:
        ours, other = Path(temporary, "plait"), Path(temporary, "peer")
        other.mkdir()
        given = [(name, HERE / "models" / name) for name in ("base", *SPECIALISTS)]
        rows = [Row(name, "", False, path, score(path, count=options.count)) for name, path in given]
        seconds: dict[str, float] = {}
        theirs: dict[str, Row | None] = {}
        for name in names:
            row, seconds[name] = merged(name, ours, options.count)
            rows.append(row)
            if options.peer and name in THEIRS.split():
                theirs[name] = peer(options.peer, name, other, options.count)
    story = Story(ours, tuple(rows))
    print(*table(story, seconds, theirs), "", *choices(names), sep="\n")
    if options.plot:
        plot(story, options.plot)


if __name__ == "__main__":
    main()
