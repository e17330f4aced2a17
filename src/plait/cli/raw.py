"""`plait raw`: merge any state dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import idle, planned_how, planning, saving


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("-i", "--tensor-intersection", "common", is_flag=True, help="Only the tensors that every input has.")
@click.option("-u", "--tensor-union", "union", is_flag=True, help="Every tensor, merged of the inputs that have it.")
@planning
@saving
@idle
def command(recipe: str, out: str, common: bool, union: bool, **options: Any) -> None:
    """Merge the files of weights, folders or pipelines of diffusers that RECIPE has as its models.

    Tensors are told by their names; nothing is known of the model. OUT gets the weights; of a pipeline, everything.
    """
    from plait import raw
    from plait.errors import PlaitError

    if common and union:
        raise PlaitError(
            "-i and -u contradict each other", wanted="one of them", found="both", do="leave one of them out"
        )
    _work.greet(options)
    how = planned_how(options)
    parts = raw.prepare(
        recipe,
        names="intersection" if common else "union" if union else "same",
        lenient=how["lenient"],
        seed=how["seed"],
        shard_size=how["shard_size"],
        cache=how["cache"],
    )

    def write(plan: Any, target: Path) -> Any:
        return _work.save(plan, str(target), options, copy_tokenizer=False, card=False)

    saved = raw.save(parts, Path(out).expanduser(), write, force=options["force"])
    if options["as_json"]:
        told = [{"component": part.folder, **_work.facts(made)} for part, made in zip(parts, saved, strict=True)]
        _show.emit_json(told if len(told) > 1 or parts[0].folder else _work.facts(saved[0]))
