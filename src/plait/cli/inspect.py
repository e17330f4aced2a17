"""`plait inspect`: the anatomy of a model, inferred from headers."""

from __future__ import annotations

import click

from plait.cli import _show


@click.command()
@click.argument("model")
@click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(model: str, cache: str | None, as_json: bool) -> None:
    """Show what MODEL is made of: modules, layers, loose tensors, vocabulary, ties. Reads headers only."""
    from pathlib import Path

    from plait.arch import infer
    from plait.checkpoint.source import open_model
    from plait.facts import model_json
    from plait.strands import Model
    from plait.types import ModelRef

    opened = open_model(ModelRef.parse(model), cache=Path(cache) if cache else None, fetch=False)
    facts = model_json(Model(opened, infer(opened.checkpoint.specs, opened.checkpoint.config)))
    if as_json:
        _show.emit_json(facts)
        return
    dtypes = ", ".join(f"{count} {code}" for code, count in facts["dtypes"].items())
    click.echo(f"{facts['model']}: {facts['architecture'] or 'no architecture in its config'}")
    click.echo(
        f"{facts['parameters']:,} parameters in {facts['tensors']} tensors ({dtypes}), {_show.size(facts['bytes'])}"
    )
    for module in facts["modules"]:
        where = f"{module['layers']} layers under {module['stack']}N" if module["stack"] else "no layers"
        key = f", counted by {module['layer_key']}" if module["layer_key"] else ""
        click.echo(f"module {module['name']}: {where}{key}")
        for side in ("before", "layer_tensors", "after"):
            if module[side]:
                label = {"before": "before", "layer_tensors": "each", "after": "after"}[side]
                click.echo(f"  {label + ':':<8}{', '.join(module[side])}")
    for name, shape in facts["vocabulary"].items():
        click.echo(f"vocabulary: {name} {shape}")
    for head, embedding in facts["tied"].items():
        click.echo(f"tied: {head} is {embedding}")
    if facts["experts"]:
        click.echo(f"experts: {facts['experts']}")
    if facts["buffers"]:
        click.echo(f"buffers: {', '.join(facts['buffers'])}")
    total = max(1, facts["parameters"])
    _show.columns(
        [(kind, f"{count:,}", f"{100 * count / total:.1f} %") for kind, count in facts["parameters_by_kind"].items()]
    )
