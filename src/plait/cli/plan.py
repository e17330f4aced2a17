"""`plait plan`: what a recipe will do, tensor by tensor, and what it will cost."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show
from plait.cli._options import Size, planning, prepared


@click.command()
@click.argument("recipe", type=click.Path())
@planning
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads to estimate for.")
@click.option("--max-memory", type=Size(), default=None, help="Plan for so much memory, PyTorch included: 500MB.")
def command(recipe: str, as_json: bool, num_threads: int | None, max_memory: int | None, **options: Any) -> None:
    """Show how RECIPE makes every output tensor: sources, method, parameters, shard; and bytes, memory, time."""
    from plait.estimate import estimate
    from plait.facts import plan_json, values

    plan = prepared(recipe, options)
    cost = estimate(plan, num_threads, max_memory)
    if as_json:
        _show.emit_json(plan_json(plan, cost))
        return
    shard_of = {name: shard.filename for shard in plan.shards for name in shard.offsets}
    for i, model in enumerate(plan.models):
        role = " (config, tokenizer)" if i == plan.donor else ""
        click.echo(f"model {i}: {model.ref}{role}, {len(model.opened.checkpoint.specs)} tensors")
    _show.columns(
        [
            (step.name, str(step.spec), step.method.name if step.method else "copy", values(step), shard_of[step.name])
            for step in plan.steps
        ]
    )
    for d in plan.dropped:
        click.echo(f"not in the output: {len(d.names)} tensors of {plan.models[d.model].ref}: {d.reason}")
    _show.notes(plan.notes)
    click.echo(
        f"{len(plan.steps)} tensors, {len(plan.shards)} shard{'s' * (len(plan.shards) > 1)}; "
        f"reads {_show.size(cost.read_nbytes)}, writes {_show.size(cost.write_nbytes)}, "
        f"holds {_show.size(cost.memory)} of memory in all; "
        f"takes about {_show.seconds(cost.seconds)} on {cost.threads} threads (from a sample), more where the disk is slower"
    )
