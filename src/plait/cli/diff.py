"""`plait diff`: how far apart models are, and what that says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from plait.cli import _show

MARKS = {"good": "+", "note": "·", "bad": "!"}


@click.command()
@click.argument("first")
@click.argument("others", nargs=-1, required=True)
@click.option("--page", type=click.Path(dir_okay=False), default=None, help="Write one HTML page with pictures.")
@click.option("--tensors", "every", is_flag=True, help="A line for each tensor.")
@click.option("--ranks/--no-ranks", default=True, help="Find the rank of what changed.  [default: yes]")
@click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("--quiet/--no-quiet", help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def command(first: str, others: tuple[str, ...], page: str | None, every: bool, as_json: bool, **options: Any) -> None:
    """Measure how far OTHERS are from the model FIRST, tensor by tensor, and say what that means for merging.

    Models are folders, files, Hub ids, or recipes (.yml), whose merge is compared without being written. Change is the norm of
    the difference relative to the norm of FIRST.
    """
    from contextlib import ExitStack

    from plait.diff import compare
    from plait.diff.facts import facts

    if page:
        from plait.diff.page import check

        check(page)
    with ExitStack() as stack:

        def progress(total: int) -> Callable[[int], None] | None:
            return stack.enter_context(_show.progress(total, "reading", options["quiet"]))

        found = compare(
            first,
            *others,
            ranks=options["ranks"],
            threads=options["num_threads"],
            cache=options["cache"],
            progress=progress,
        )
    data = facts(found)
    if page:
        from plait.diff.page import write

        write(data, page)
    if as_json:
        _show.emit_json(data)
        return
    _tables(data, every)
    for verdict in data["verdicts"]:
        click.echo(f"{MARKS[verdict['mark']]} {verdict['says']}\n    {verdict['because']}")
    if page:
        click.echo(f"wrote {page}")


def _tables(data: dict[str, Any], every: bool) -> None:
    from plait.diff.phrases import fixed, percent

    names = [model["name"] for model in data["models"]]
    rows = []
    for i, model in enumerate(data["models"]):
        depth = [layer["change"][i - 1] or 0.0 for layer in data["layers"]] if i else []
        numbers = ["", "", "", "", ""]
        if i:
            total = data["total"]
            numbers = [
                percent(total["change"][i - 1]),
                fixed(total["cosine"][i - 1], 5),
                percent(total["unchanged"][i - 1]),
                fixed(total["ranks"][i - 1], 0),
                _show.spark(depth),
            ]
        rows.append([model["name"], f"{model['parameters']:,}", "/".join(model["dtypes"]), *numbers])
    head: tuple[str, ...] = ("model", "parameters", "dtype", "change", "cosine", "unchanged", "rank", "change by layer")
    _show.table(head, rows, left=(0, 2, 7))
    conflict = len(names) > 2
    head = ("kind", *(f"change {name}" for name in names[1:]), *(["signs differ"] if conflict else []))
    rows = [
        [kind["kind"], *map(percent, kind["change"]), *([percent(kind["conflict"])] if conflict else [])]
        for kind in data["kinds"]
    ]
    _show.table(head, rows)
    if conflict:
        rows = [
            [" – ".join(p["models"]), percent(p["distance"]), fixed(p["delta_cosine"], 3), percent(p["sign_agreement"])]
            for p in data["pairs"]
        ]
        _show.table(("pair", "distance", "cosine of deltas", "signs agree"), rows)
    if every:
        rows = [
            [t["name"], *map(percent, t.get("change") or [None] * (len(names) - 1))]
            + [fixed(rank["effective"], 0) if rank else "" for rank in t["ranks"]]
            for t in data["tensors"]
        ]
        head = ("tensor", *(f"change {name}" for name in names[1:]), *(f"rank {name}" for name in names[1:]))
        _show.table(head, rows)
