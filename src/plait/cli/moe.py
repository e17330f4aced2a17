"""`plait moe`: a mixture of experts out of dense models."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import idle, planning, saving

_WITHOUT = ("allow_crimes", "unsafe_truncate_embeddings", "load_in_4bit", "load_in_8bit")


def families(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the table of classes and end."""
    if not value or ctx.resilient_parsing:
        return
    from plait.moe.families import FAMILIES, UNFIT

    shared = {f.model_type: _shared(f) for f in FAMILIES}
    rows = [("class", "of", "shared experts")]
    rows += [(f.model_type, ", ".join(f.dense), shared[f.model_type]) for f in FAMILIES]
    _show.columns(rows)
    click.echo("\nnot made:")
    reasons: dict[str, list[str]] = {}
    for kind, reason in UNFIT.items():
        reasons.setdefault(reason, []).append(kind)
    for reason, kinds in reasons.items():
        click.echo(f"  {', '.join(kinds)}: {reason}")
    ctx.exit()


def _shared(family: Any) -> str:
    if family.shared is None:
        return "none"
    many = "one" if family.shared.required else "one or none"
    return f"{many}, {'with' if family.shared.gate else 'without'} a gate"


@click.command()
@click.argument("config", type=click.Path())
@click.argument("out", type=click.Path())
@planning
@saving
@click.option("--resume", is_flag=True, help="Go on where a run into OUT stopped.")
@click.option(
    "--families", is_flag=True, is_eager=True, expose_value=False, callback=families, help="Which classes fit."
)
@click.option(
    "--i-understand-this-is-not-useful-without-training", "alike", is_flag=True, help="Let all experts be one model."
)
@click.option("--load-in-4bit", is_flag=True, help="Nothing to do: one layer is in memory at a time.")
@click.option("--load-in-8bit", is_flag=True, help="The same.")
@idle
def command(config: str, out: str, **options: Any) -> None:
    """Make a mixture of experts of the dense models in CONFIG, and write the model directory OUT.

    CONFIG is as for mergekit-moe. Everything but the experts and the router is the base model's.
    """
    from plait.moe import prepare

    _work.greet(options)
    idle = [f"--{name.replace('_', '-')} has nothing to do here" for name in _WITHOUT if options[name]]
    _show.notes(idle, options["quiet"])
    made = prepare(
        config,
        lenient=options["lenient"],
        alike=options["alike"],
        seed=options["random_seed"],
        shard_size=options["out_shard_size"],
        expert_layout=options["expert_layout"],
        cache=options["cache"],
        lora_merge_dtype=options["lora_merge_dtype"],
    )
    _show.notes([f"the class is {made.family.architecture}; its router: {made.gates.mode}"], options["quiet"])
    saved = _work.save(made.plan, out, options, resume=options["resume"])
    near = made.gates.near()
    _show.notes(near, options["quiet"])
    if options["as_json"]:
        _show.emit_json({**_work.facts(saved), "architecture": made.family.architecture, "notes": near})
