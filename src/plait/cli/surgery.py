"""`plait surgery`: drop, repeat, shuffle layers. Each operation prints the recipe that it stands for, and runs it with an OUT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from plait.cli import _show


@click.group(cls=_show.Listed)
def command() -> None:
    """Drop, repeat or shuffle layers. Prints the recipe, and with an OUT runs it."""


def finishing(function: Any) -> Any:
    """What all operations take."""
    for option in reversed(
        (
            click.option("--dtype", default=None, help="Of the output.  [default: the models' own]"),
            click.option("--fp16", is_flag=True, help="The same as --dtype float16."),
            click.option("--write-yaml", type=click.Path(dir_okay=False), default=None, help="The recipe into a file."),
            click.option("--print-yaml", is_flag=True, help="Nothing to do."),
            click.option("--dry-run", is_flag=True, help="Write no model, though there is an OUT."),
            click.option("--force", is_flag=True, help="Replace the model that is in OUT."),
            click.option("--transformers-cache", "cache", type=click.Path(), help="Folder of downloaded models."),
            click.option("--json", "as_json", is_flag=True, help="Recipe and layers as JSON."),
        )
    ):
        function = option(function)
    return function


@command.command("drop")
@click.argument("model")
@click.argument("layers")
@click.argument("out", required=False, type=click.Path())
@finishing
def drop(model: str, layers: str, out: str | None, **options: Any) -> None:
    """Leave out LAYERS, such as 3,8-11 (counted from 0, both ends meant)."""
    from plait.surgery.layers import drop, numbers

    _finish([model], lambda count: drop(count, numbers(layers, count)), out, options)


@command.command("repeat")
@click.argument("model")
@click.argument("layers")
@click.argument("out", required=False, type=click.Path())
@click.option("--times", type=click.IntRange(2), default=2, show_default=True, help="How often they are there then.")
@finishing
def repeat(model: str, layers: str, out: str | None, times: int, **options: Any) -> None:
    """Go through LAYERS, such as 4-11, once more after the last of them."""
    from plait.surgery.layers import numbers, repeat

    _finish([model], lambda count: repeat(count, numbers(layers, count), times), out, options)


@command.command("upscale")
@click.argument("model")
@click.argument("out", required=False, type=click.Path())
@click.option("--overlap", type=click.IntRange(1), default=None, help="Layers that are there twice.  [default: half]")
@finishing
def upscale(model: str, out: str | None, overlap: int | None, **options: Any) -> None:
    """Depth up-scaling as for SOLAR: the model without its last layers, then the model without as many first ones.

    32 layers with an overlap of 16 become 48. It is meant to be trained further.
    """
    from plait.surgery.layers import upscale

    _finish([model], lambda count: upscale(count, overlap or count // 2 + (count // 2 + count) % 2), out, options)


@command.command("shuffle")
@click.argument("out", required=False, type=click.Path())
@click.option("-m", "--model", "models", multiple=True, required=True, help="A model; may be repeated.")
@click.option(
    "-w", "--weight", "weights", multiple=True, type=float, help="How likely it is, one a model.  [default: 1]"
)
@click.option("--full-random", is_flag=True, help="The order of the layers is random, too.")
@click.option("--random-seed", type=int, default=0, show_default=True, help="Another seed, another model.")
@finishing
def shuffle(
    models: tuple[str, ...],
    weights: tuple[float, ...],
    out: str | None,
    full_random: bool,
    random_seed: int,
    **options: Any,
) -> None:
    """Take each layer from one of several models by chance.

    What stands before the layers comes from the model of the first one, what stands after them from that of the last.
    """
    from plait.errors import PlaitError
    from plait.surgery.layers import shuffle

    if weights and len(weights) != len(models):
        found = f"{len(models)} models, {len(weights)} weights"
        raise PlaitError(
            "each model needs its weight",
            wanted="-w once for each -m",
            found=found,
            do=f"give {len(models)} of them, or none",
        )
    shares = weights or (1.0,) * len(models)
    _finish(models, lambda count: shuffle(count, shares, random_seed, full_random), out, options)


@command.command("prune")
@click.argument("model")
@click.argument("count", type=click.IntRange(1))
@click.argument("out", required=False, type=click.Path())
@click.option("--text", type=click.Path(exists=True, dir_okay=False), default=None, help="Run the model on this text.")
@finishing
def prune(model: str, count: int, out: str | None, text: str | None, **options: Any) -> None:
    """Leave out the COUNT layers that a model can best do without.

    With --text: the layers in a row that change the least of what goes through them on that text (needs transformers; a few
    thousand words are enough). Without: those whose weights are most like the layer's before, which finds copies, little else.
    """
    from plait import front
    from plait.errors import PlaitError
    from plait.surgery.layers import depth, drop
    from plait.surgery.similarity import by_text, by_weights, least

    opened = front.inspect(model, cache=options["cache"])
    layers = depth([opened])
    if count >= layers:
        raise PlaitError(
            "no layer is left",
            wanted=f"at most {layers - 1} layers to drop",
            found=str(count),
            do="give a smaller COUNT",
        )
    if text:
        if opened.opened.folder is None:
            raise PlaitError(
                f"{model} cannot be run",
                wanted="a model directory",
                found="a file of weights",
                do="name the directory, or leave out --text",
            )
        angles = by_text(opened.opened.folder, Path(text).read_text("utf-8", errors="replace"), count)
        at = angles.index(min(angles))
        gone, told = list(range(at, at + count)), f"angle {angles[at]:.3f} of {min(angles):.3f} to {max(angles):.3f}"
    else:
        stack = next(module.stack for module in opened.arch.modules if module.stack)
        angles = by_weights(opened.opened.checkpoint, stack)
        gone = least(angles, count)
        told = f"angles to the layer before from {min(angles):.3f} to {max(angles):.3f}"
    click.echo(f"layers {', '.join(map(str, gone))} go: {told}", err=True)
    _finish([model], lambda count: drop(count, gone), out, options)


def _finish(
    models: Sequence[str], order: Callable[[int], list[tuple[int, int]]], out: str | None, options: dict[str, Any]
) -> None:
    """Print the recipe and, with an OUT, run it; it is planned in any case, so that what is wrong is found."""
    from plait import front
    from plait.output.textfile import write_text
    from plait.recipe import write
    from plait.surgery.layers import depth

    layers = order(depth([front.inspect(model, cache=options["cache"]) for model in models]))
    made = write.stacked(models, layers, "float16" if options["fp16"] else options["dtype"])
    text = write.text(made)
    merge = front.merge(made, cache=options["cache"])
    if options["as_json"]:
        _show.emit_json({"layers": [{"model": models[m], "layer": layer} for m, layer in layers], "recipe": made})
    else:
        click.echo(text, nl=False)
    if options["write_yaml"]:
        write_text(Path(options["write_yaml"]), text)
    _show.notes(merge.plan.notes)
    if out and not options["dry_run"]:
        saved = merge.save(out, force=options["force"])
        click.echo(f"wrote {saved.out}: {len(layers)} layers, {_show.size(saved.nbytes)}", err=True)
