"""`plait cite`: BibTeX of the methods that recipes use."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path())
@click.option("--load", "files", multiple=True, type=click.Path(), help="A Python file with methods of your own.")
def command(recipes: tuple[str, ...], files: tuple[str, ...]) -> None:
    """Print BibTeX of the papers behind RECIPES' methods. No model is looked at."""
    from plait import fit
    from plait.errors import raise_all
    from plait.methods import load, registry
    from plait.recipe import kinds
    from plait.report import bibtex

    for file in files:
        load(file)
    used: dict[str, None] = {}
    for path in recipes:
        for recipe in kinds.check(path, lenient=True).recipes:
            problems, _ = fit.problems(recipe, lenient=True)
            raise_all(problems)
            used[recipe.method] = None
    for name in used:
        click.echo(bibtex(registry()[name]))
