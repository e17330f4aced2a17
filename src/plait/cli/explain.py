"""`plait explain`: one output tensor, and which line of the recipe gave each number."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show
from plait.cli._options import planning, prepared


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("tensor")
@planning
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(recipe: str, tensor: str, as_json: bool, **options: Any) -> None:
    """Explain how RECIPE makes the one output TENSOR, and which line gave each value."""
    from plait.facts import step_json

    plan = prepared(recipe, options)
    step = plan.step(tensor)
    if as_json:
        _show.emit_json(step_json(plan, step))
        return
    place = f"layer {step.layer} of {step.module}" if step.layer is not None else f"outside the layers of {step.module}"
    click.echo(f"{step.name}: {step.spec}, {place}")
    click.echo(f"method: {step.method.name if step.method else 'copy, byte for byte'}")
    if step.rule:
        click.echo(f"rule: {step.rule.when}" + (f" ({step.rule.where})" if step.rule.where else ""))
    elif plan.recipe.rules:
        where = plan.recipe.at("otherwise")
        click.echo(f"rule: none fits; otherwise {plan.recipe.otherwise}" + (f" ({where})" if where else ""))
    if step.note:
        click.echo(f"note: {step.note}")
    rows = [
        (
            "base" if source is step.base else "model",
            str(plan.models[source.model].ref),
            source.name,
            str(plan.spec_of(source)),
        )
        for source in step.sources()
    ]
    click.echo("inputs")
    _show.columns(rows)
    if step.method and step.settings:
        click.echo("values")
        _show.columns(
            [
                (
                    f"{given.parameter} = {_show.number(given.value)}",
                    f"for {plan.models[given.model].ref}" if given.model is not None else "for all",
                    f"{given.scope}, {given.where}" if given.where else given.scope,
                )
                for given in step.settings
            ]
        )
