"""`plait cite`: BibTeX of the methods that recipes use."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path())
@click.option("--load", "files", multiple=True, type=click.Path(), help="A Python file with methods of your own.")
def command(recipes: tuple[str, ...], files: tuple[str, ...]) -> None:
    """Print BibTeX of the papers behind RECIPES' methods and bricks. No model is looked at."""
    from plait import fit
    from plait.bricks import bricks
    from plait.errors import raise_all
    from plait.facts import bibtex
    from plait.method import Declared
    from plait.methods import load, registry
    from plait.recipe import kinds

    for file in files:
        load(file)
    used: dict[Declared, None] = {}
    for path in recipes:
        for recipe in kinds.check(path, lenient=True).recipes:
            problems, _ = fit.problems(recipe, lenient=True)
            raise_all(problems)
            used |= {registry()[name]: None for name in recipe.methods()}
            used |= {bricks()[use.name]: None for _, use in recipe.bricks()}
    for entry in dict.fromkeys(bibtex(part) for part in used):
        click.echo(entry)
