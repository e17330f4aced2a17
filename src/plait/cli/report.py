"""`plait report`: whether a merge is broken, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from plait.cli import _show

MARKS = {"good": "+", "note": "·", "bad": "!"}


@click.command()
@click.argument("out", type=click.Path())
@click.option("--recipe", type=click.Path(), help="What OUT was made by.  [default: the recipe in OUT]")
@click.option("--against", multiple=True, metavar="MODEL", help="A parent, instead of a recipe; the base first.")
@click.option("--text", type=click.Path(), help="Perplexity of this file, next to the parents'.")
@click.option("--prompt", help="Let OUT go on from this text for 20 tokens.")
@click.option("--page", type=click.Path(dir_okay=False), default=None, help="Write one HTML page with pictures.")
@click.option("--load", "files", multiple=True, type=click.Path(), help="A Python file with methods of your own.")
@click.option("--ranks/--no-ranks", default=True, help="Find the rank of what changed.  [default: yes]")
@click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("--quiet/--no-quiet", help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(out: str, page: str | None, files: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> int:
    """Say whether the merge in OUT is good or broken, and why: measured against the models that its recipe names.

    Reads OUT and its parents once. The exit code is 2 for a broken merge.
    """
    from contextlib import ExitStack

    from plait.methods import load
    from plait.report import report
    from plait.report.build import as_json as data_of

    if page:
        from plait.diff.page import check

        check(page)
    for file in files:
        load(file)
    with ExitStack() as stack:

        def progress(total: int) -> Callable[[int], None] | None:
            return stack.enter_context(_show.progress(total, "reading", quiet))

        def asking(total: int) -> Any:
            stack.close()  # one bar at a time
            return _show.counting(total, "asking", quiet)

        made = report(
            out,
            recipe=options["recipe"],
            against=options["against"],
            text=options["text"],
            prompt=options["prompt"],
            ranks=options["ranks"],
            threads=options["num_threads"],
            cache=options["cache"],
            progress=progress,
            asking=asking,
        )
    data = data_of(made)
    if page:
        from plait.report.page import write

        write(data, page)
    if as_json:
        _show.emit_json(data)
    else:
        _tell(data)
        if page:
            click.echo(f"wrote {page}")
    return 2 if data["verdict"] == "broken" else 0


def _tell(data: dict[str, Any]) -> None:
    from plait.diff.phrases import fixed
    from plait.output.depths import sparkline

    reasons = "".join(f"\n    {reason}" for reason in data["reasons"])
    click.echo(f"{data['name']} is {data['verdict']}" + (f":{reasons}" if reasons else "") + "\n")
    rows = [
        (
            parent["name"],
            fixed(parent["cosine"], 4),
            fixed(parent["norm"], 3),
            fixed(parent["carried"], 2),
            _show.spark([max(0.0, layer["carried"] or 0.0) for layer in parent["layers"]]),
        )
        for parent in data["parents"]
    ]
    _show.table(("parent", "cosine", "norm", "of its change", "by layer"), rows, left=(0, 4))
    if data["values"]:
        _show.table(
            ("recipe gives", "model", "tensors", "value", "by layer"),
            [
                (
                    row["parameter"],
                    row["model"] or "shared",
                    row["tensors"],
                    _span(row),
                    sparkline(row["layers"]) if "layers" in row else "",
                )
                for row in data["values"]
            ],
            left=(0, 1, 2, 4),
        )
    for v in data["verdicts"]:
        click.echo(f"{MARKS[v['mark']]} {v['says']}\n    {v['because']}")
    if data["written"]:
        click.echo(f"{data['written']['prompt']}[{data['written']['text']}]")


def _span(row: dict[str, Any]) -> str:
    from plait.output.card import number, span

    return span(row["layers"]) if "layers" in row else number(row["value"])
