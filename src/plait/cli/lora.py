"""`plait lora`: adapters made of models, merged, put into models."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import idle, planned_how, planning

RANK = 128  # of extract, if there is no bound; mergekit's


@click.group()
def command() -> None:
    """Make adapters of models, merge adapters, put them into models."""


def limited(function: Any) -> Any:
    """How many ranks an adapter gets."""
    for option in reversed(
        (
            click.option("--max-rank", "--rank", "rank", type=int, default=None, help="Ranks of a module at most."),
            click.option("--energy", type=float, default=None, help="Keep this share of the squared norm: 0.9, say."),
            click.option(
                "--error", type=float, default=None, help="Leave out at most this share of the norm: 0.1, say."
            ),
            click.option("--dtype", default="float32", show_default=True, help="Of the factors."),
        )
    ):
        function = option(function)
    return function


@command.command("extract")
@click.option("--model", required=True, help="The fine-tuned model, or a recipe.")
@click.option("--base-model", "base", required=True, help="The model that it was made of.")
@click.option("--out-path", "out", required=True, type=click.Path(), help="Folder of the adapter.")
@limited
@click.option("--sv-epsilon", type=float, default=0.0, help="Leave out singular values up to this.  [default: 0]")
@click.option(
    "--distribute-scale/--no-distribute-scale",
    default=True,
    help="Singular values over A and B, or in A.  [default: over both]",
)
@click.option("--embed-lora/--no-embed-lora", "embed", help="Factors for embeddings and head, too.")
@click.option("--save-module", "save", multiple=True, help="Hold modules of this name whole; may be repeated.")
@click.option("-i", "--include-regex", "include", multiple=True, help="Only modules that this fits; may be repeated.")
@click.option("-e", "--exclude-regex", "exclude", multiple=True, help="No modules that this fits; may be repeated.")
@click.option("--skip-undecomposable", "skip_whole", is_flag=True, help="Nothing whole of what has no factors.")
@click.option("--force", is_flag=True, help="Replace what is in the folder.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("-v", "--verbose", count=True, help="Say more.")
@click.option("--quiet/--no-quiet", help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Every module with its rank and error, as JSON.")
@planning
@idle
def extract(model: str, base: str, out: str, **options: Any) -> None:
    """Make the adapter that turns the base into the model.

    Without --rank, --energy or --error a module gets 128 ranks at most; --error 0 holds the whole change. Takes every option
    of mergekit-extract-lora.
    """
    from plait.lora import Choice, Limit
    from plait.lora import extract as run
    from plait.lora.report import as_data, total

    _work.greet(options)
    quiet = options["quiet"]
    bounded = any(options[name] is not None for name in ("rank", "energy", "error"))
    limit = Limit(options["rank"] if bounded else RANK, options["energy"], options["error"], options["sv_epsilon"])
    names = ("embed", "save", "include", "exclude", "skip_whole")
    choice = Choice(**{name: options[name] for name in names})
    how = planned_how(options)
    how.pop("truncate_embeddings"), how.pop("shard_size")
    with _show.modules(quiet) as progress:
        made = run(
            model,
            base,
            out,
            limit,
            choice,
            distribute=options["distribute_scale"],
            dtype=options["dtype"],
            threads=options["num_threads"],
            force=options["force"],
            progress=progress,
            **how,
        )
    facts = {"out": str(made.out), "bytes": made.nbytes, "error": total(made.rows), "modules": as_data(made.rows)}
    if options["as_json"]:
        _show.emit_json({**facts, "left_out": list(made.left_out)})
    elif not quiet:
        _told(made)


def _told(made: Any) -> None:
    """The modules with most left out, and the sum of all."""
    from plait.lora.report import total

    factored = sorted((row for row in made.rows if row.rank is not None), key=lambda row: -row.error)
    if factored:
        _show.columns(
            [("rank", "left out", "module")] + [(str(r.rank), f"{r.error:.3g}", r.module) for r in factored[:8]]
        )
    if len(factored) > 8:
        click.echo(f"  … {len(factored) - 8} modules more, with less left out (--json lists all)")
    _show.notes(made.notes)
    for name in made.left_out:
        click.echo(f"note: {name} has changed, and is of a kind that an adapter cannot hold", err=True)
    whole = len(made.rows) - len(factored)
    click.echo(
        f"wrote {made.out}: {len(factored)} modules with factors, {whole} whole, {_show.size(made.nbytes)}; "
        f"{total(made.rows):.3g} of the factored modules' change is left out"
    )
