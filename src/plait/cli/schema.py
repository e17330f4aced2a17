"""`plait schema`: the JSON Schema of recipes, for editors."""

from __future__ import annotations

import click

from plait.cli import _show


@click.command()
def command() -> None:
    """Print the JSON Schema of recipes, for completion and checking in an editor."""
    from plait.fit import parameter_schemas
    from plait.methods import registry
    from plait.recipe.schema import schema

    _show.emit_json(schema(parameter_schemas(registry())))
