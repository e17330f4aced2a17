"""`plait convert`: an older tool's recipe in the language of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plait.cli import _show


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--merge", "models", multiple=True, help="A model, instead of FILE; may be repeated.")
@click.option("--method", default=None, help="Of --merge.  [default: ties]")
@click.option("--base-model", default=None, help="Of --merge.")
@click.option("--weight", multiple=True, type=float, help="One for all, or one for each --merge.  [default: 1]")
@click.option("--density", multiple=True, type=float, help="One for all, or one for each --merge.")
@click.option("--normalize/--no-normalize", default=None, help="Divide by the sum of the weights.")
@click.option("--int8-mask", is_flag=True, help="Into the recipe, where it has no effect.")
@click.option("--bf16/--no-bf16", help="dtype: bfloat16.")
@click.option("--naive-count", is_flag=True, help="Nothing to do.")
@click.option("--print-yaml", is_flag=True, help="Nothing to do.")
@click.option("-o", "--out", type=click.Path(dir_okay=False), default=None, help="Into a file.  [default: print it]")
@click.option("--json", "as_json", is_flag=True, help="The recipe as JSON.")
def command(file: str | None, models: tuple[str, ...], out: str | None, as_json: bool, **flags: Any) -> None:
    """Write FILE as a clean recipe, and check it: layer_slices of bakllama, and what mergekit writes beside its models.

    Without a FILE, the flags of mergekit-legacy: --merge, --weight, --density, … Comments are not kept.
    """
    from plait.errors import RecipeError, raise_all
    from plait.fit import problems
    from plait.output.textfile import write_text
    from plait.recipe import load, write

    if bool(file) == bool(models):
        raise RecipeError(
            f"{file} and --merge contradict each other" if file else "there is nothing to convert",
            wanted="a file, or --merge",
            found="both" if file else "neither",
            do="leave one of them out" if file else "give one of them",
        )
    made, notes = _from_file(file) if file else (_from_flags(models, flags), [])
    raise_all(problems(load(made))[0])
    text = write.text(made)
    _show.notes(notes)
    if out:
        write_text(Path(out), text)
    elif as_json:
        _show.emit_json(made)
    else:
        click.echo(text, nl=False)


def _from_file(file: str) -> tuple[dict[str, Any], list[str]]:
    from plait.errors import RecipeError
    from plait.recipe import document
    from plait.recipe.load import open_text
    from plait.recipe.old import modern

    path, text = open_text(file)
    documents = document.parse(text, path or file)
    if len(documents) != 1:
        found = f"{len(documents)} documents"
        raise RecipeError(
            f"{file} holds no single recipe",
            wanted="one document",
            found=found,
            do="give each recipe a file of its own",
        )
    return modern(document.plain(documents[0]) if "layer_slices" not in (documents[0] or {}) else documents[0])


def _from_flags(models: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    from plait.errors import RecipeError, nearest
    from plait.methods import registry
    from plait.recipe.old import METHOD, of_flags

    name = flags["method"] or METHOD
    method = registry().get(name)
    if method is None:
        guess = nearest(name, registry())
        raise RecipeError(
            f"there is no method {name!r}",
            found=name,
            do=f"did you mean {guess}?" if guess else "name one of those that 'plait methods' lists",
        )
    known = {p.name for p in method.parameters} | set(method.idle)
    each = {"weight": flags["weight"], "density": flags["density"]}
    shared = {"normalize": flags["normalize"], "int8_mask": flags["int8_mask"] or None}
    dtype = "bfloat16" if flags["bf16"] else None
    return of_flags(models, method.name, known, flags["base_model"], each, shared, dtype)
