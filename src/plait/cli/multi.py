"""`plait multi`: several recipes of one file, in order."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import idle, planned_how, planning, saved_how, saving


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("out", required=False, type=click.Path())
@click.option("--out-path", type=click.Path(), default=None, help="The same as OUT.")
@click.option(
    "-I", "--intermediate-dir", "keep", type=click.Path(), default=None, help="Keep the named stages in this folder."
)
@click.option("--lazy/--no-lazy", default=True, help="Use stages that are there and still fit.  [default: yes]")
@planning
@saving
@idle
def command(recipe: str, out: str | None, out_path: str | None, keep: str | None, lazy: bool, **options: Any) -> None:
    """Run the stages of RECIPE, documents separated by '---', of which those with a name: are models for the others.

    The stage without a name, or the last, goes to OUT. The others stream into it; with -I they are written and kept.
    """
    from plait.errors import PlaitError
    from plait.multi import multi

    if out and out_path and out != out_path:
        raise PlaitError("the output is given twice", found=f"{out} and --out-path {out_path}", do="keep one of them")
    _work.greet(options)
    made = multi(
        recipe,
        out_path or out,
        keep=keep,
        lazy=lazy,
        planning=planned_how(options),
        saving=saved_how(options),
        write=lambda plan, target, **how: _work.save(plan, str(target), options, **how),
    )
    for stage in made:
        name = stage.name or "the last stage"
        if options["quiet"] or options["as_json"]:
            continue
        if stage.why:
            click.echo(f"{name}: made anew, since it differs: {'; '.join(stage.why)}")
    if options["as_json"]:
        _show.emit_json(
            [
                {
                    "stage": stage.name,
                    "made": not stage.saved.untouched,
                    "why": list(stage.why),
                    **_work.facts(stage.saved),
                }
                for stage in made
            ]
        )
