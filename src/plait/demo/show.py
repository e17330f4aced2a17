"""The demo on the screen: colours and a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plait.demo import table
from plait.demo.score import Tick, silent
from plait.demo.story import Story, play
from plait.output.textfile import write_text

QUICK = 100  # items of each skill
WIDTH = 100  # columns


def show(out: Path, *, quick: bool = False, json_file: Path | None = None) -> Story:
    """Play the demo in `out` and print it; with `json_file`, write the numbers there too. Raises OutputError."""
    if json_file:
        new = not os.path.exists(json_file)
        write_text(json_file, "", "a")  # which tells before the work whether it can be done
        if new:
            json_file.unlink()
    story = play(out, QUICK if quick else None, say=lambda line: print(_fitted(line), flush=True), progress=bar)
    print()
    if sys.stdout.isatty():
        import rich

        rich.print(table.rich(story) if _width() > 75 else table.plain(story))
    else:
        print(table.plain(story))
    for paragraph in [*table.footnotes(story), "", *table.learnt(story), ""]:
        print(textwrap.fill(paragraph, _width()))
    for line in advice(out).splitlines():
        print(_fitted(line))
    if json_file:
        write_text(json_file, json.dumps(table.as_json(story), indent=2) + "\n")
    return story


def _width() -> int:
    return min(WIDTH, max(40, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else WIDTH


def _fitted(line: str) -> str:
    """A line of the story, broken between words where a terminal is too narrow for it."""
    if not sys.stdout.isatty() or len(line) <= _width():
        return line
    head = re.match(r"  \S+  +", line)
    return textwrap.fill(line, _width(), subsequent_indent=" " * (len(head[0]) if head else 4), break_long_words=False)


@contextmanager
def bar(total: int) -> Iterator[Tick]:
    """A progress bar over `total` questions on standard error, or nothing if that is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("asking the models", total=total)
        yield lambda done: progress.advance(task, done)


def advice(out: Path) -> str:
    """The commands to go on with."""
    recipe, again = out / "recipes" / "slerp.yml", "plait demo" + (f" --out {out}" if str(out) != "demo" else "")
    return "\n".join(
        [
            "To go on:",
            f"  change a number in {out / 'recipes'}{os.sep}, or add a recipe of your own, and run: {again}",
            f"  for your own models, copy {recipe}, name them in it, and run:",
            "    plait check RECIPE        finds mistakes without reading a weight",
            "    plait merge RECIPE OUT    writes the merged model",
        ]
    )
