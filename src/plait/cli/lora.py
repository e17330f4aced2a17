"""`plait lora`: adapters made of models, merged, put into models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import idle, planned_how, planning, saving

RANK = 128  # of extract, if there is no bound; mergekit's


@click.group(cls=_show.Listed)
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
    _show.notes(made.notes, quiet)
    _show.notes((f"{name} has changed, and is of a kind that an adapter cannot hold" for name in made.left_out), quiet)
    _closing(made, options, left_out=list(made.left_out))


def _closing(made: Any, options: Any, **more: Any) -> None:
    """What was written: the modules with most left out, and the sum of all; or everything as JSON."""
    from plait.lora.report import as_data, total

    if options["as_json"]:
        facts = {"out": str(made.out), "bytes": made.nbytes, "error": total(made.rows), "modules": as_data(made.rows)}
        _show.emit_json({**facts, **more})
    if options["as_json"] or options["quiet"]:
        return
    factored = sorted((row for row in made.rows if row.rank is not None), key=lambda row: -row.error)
    if factored:
        _show.columns(
            [("rank", "left out", "module")] + [(str(r.rank), f"{r.error:.3g}", r.module) for r in factored[:8]]
        )
    if len(factored) > 8:
        click.echo(f"  … {len(factored) - 8} modules more, with less left out (--json lists all)")
    whole = len(made.rows) - len(factored)
    click.echo(
        f"wrote {made.out}: {len(factored)} modules with factors, {whole} whole, {_show.size(made.nbytes)}; "
        f"{total(made.rows):.3g} of the factored modules' change is left out"
    )


@command.command("merge")
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.argument("out", type=click.Path())
@click.option(
    "-w", "--weight", "weights", multiple=True, type=float, help="One for all, or one for each.  [default: 1]"
)
@click.option("--method", default=None, help="Any merge method.  [default: the sum, exactly]")
@click.option("-p", "--parameter", "given", multiple=True, metavar="NAME=VALUE", help="Of the method; may be repeated.")
@click.option("--base-model", "base", default=None, help="Needed for adapters that are more than factors: DoRA, say.")
@limited
@click.option("--random-seed", "seed", type=int, default=None, help="Seed of dare and its kin.  [default: 0]")
@click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models.")
@click.option("--lenient", is_flag=True, help="Pass over what mergekit ignores, with a warning for each.")
@click.option("--force", is_flag=True, help="Replace what is in OUT.")
@click.option("--quiet/--no-quiet", help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Every module with its rank and error, as JSON.")
def merge(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Make one adapter of several: SOURCES are adapters, or one recipe that has adapters as its models.

    What is merged is what the adapters change, never their A and B. A sum is exact, and its ranks add up; --rank, --energy or
    --error make it smaller, as well as can be, and what is left out is told.
    """
    from plait.lora import BaseNeededError, Limit, extract
    from plait.lora import merge as run
    from plait.lora.merge import over_base

    recipe = _recipe(sources, options)
    bounded = any(options[name] is not None for name in ("rank", "energy", "error"))
    limit = Limit(options["rank"], options["energy"], options["error"]) if bounded else None
    more = {name: options[name] for name in ("dtype", "seed", "lenient", "cache", "force")}
    with _show.modules(options["quiet"]) as progress:
        try:
            made: Any = run(recipe, out, limit, progress=progress, **more)
        except BaseNeededError:
            if options["base"] is None:
                raise
            nested, ranks = over_base(recipe, options["base"])
            made = extract(nested, options["base"], out, limit or Limit(rank=ranks), progress=progress, **more)
    _show.notes(made.notes, options["quiet"])
    _closing(made, options)


def _recipe(sources: Sequence[str], options: Any) -> Any:
    """The recipe that is named, or one of the adapters and options."""
    from plait.errors import PlaitError
    from plait.methods import registry
    from plait.recipe import write

    if len(sources) == 1 and sources[0].endswith((".yml", ".yaml")):
        if options["method"] or options["weights"] or options["given"]:
            raise PlaitError(
                "a recipe has its method, weights and parameters in itself",
                found="options beside one",
                do="write them into it",
            )
        return sources[0]
    _one_each(sources, options["weights"])
    method = registry().get(options["method"])
    weighted = method is None or any(parameter.name == "weight" for parameter in method.parameters)
    return write.together(sources, options["weights"], options["method"], options["given"], weighted)


@command.command("apply")
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True)
@click.argument("out", type=click.Path())
@click.option(
    "-w", "--weight", "weights", multiple=True, type=float, help="One for all, or one for each.  [default: 1]"
)
@click.option("--dtype", default=None, help="Of the output.  [default: the base's]")
@planning
@saving
@click.option("--resume", is_flag=True, help="Go on where a merge into OUT stopped.")
@idle
def apply(base: str, adapters: tuple[str, ...], out: str, **options: Any) -> None:
    """Put ADAPTERS into their BASE and write the model OUT."""
    from plait.cli._options import prepared
    from plait.recipe import write

    weights, dtype = options["weights"], options["dtype"]
    _one_each(adapters, weights)
    _work.greet(options)
    recipe = write.applied(base, adapters, list(weights) * len(adapters) if len(weights) == 1 else weights)
    plan = prepared({**recipe, **({"dtype": dtype} if dtype else {})}, options)
    saved = _work.save(plan, out, options, resume=options["resume"])
    if options["as_json"]:
        _show.emit_json(_work.facts(saved))


def _one_each(adapters: Sequence[str], weights: Sequence[float]) -> None:
    from plait.errors import PlaitError

    if weights and len(weights) not in (1, len(adapters)):
        found = f"{len(adapters)} adapters, {len(weights)} weights"
        raise PlaitError(
            "each adapter needs its weight",
            wanted="-w once, or once for each adapter",
            found=found,
            do="add the weights that are missing, or leave out those that are too many",
        )
