"""`plait methods`: the list of merge methods, or the page of one."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--load", "files", multiple=True, type=click.Path(), help="A Python file with methods of your own.")
@click.option(
    "--check", "checked", multiple=True, type=click.Path(), help="Run the contract suite on a file's methods."
)
def command(name: str | None, as_json: bool, files: tuple[str, ...], checked: tuple[str, ...]) -> None:
    """List the merge methods and the bricks around them, or show the page of NAME: what it does, its parameters, its paper."""
    from plait.bricks import bricks
    from plait.errors import PlanError, nearest
    from plait.methods import load, registry

    for file in files:
        load(file)
    if checked:
        _check([method for file in checked for method in load(file)])
        return
    methods: dict[str, Any] = {**registry(), **bricks()}
    if name is not None and name not in methods:
        guess = nearest(name, methods)
        raise PlanError(
            f"there is no merge method or brick {name!r}",
            wanted=", ".join(methods),
            found=name,
            do=f"did you mean {guess}?" if guess else "write one of them",
        )
    if as_json:
        _show.emit_json(_facts(methods[name]) if name else [_facts(m) for m in methods.values()])
    elif name is None:
        _show.columns([(m.name, m.summary) for m in registry().values()], indent="")
        for at, when in (("pre", "before a method, under pre:"), ("post", "after a method, under post:")):
            click.echo(f"\n{when}")
            _show.columns([(b.name, b.summary) for b in bricks().values() if b.at == at], indent="")
    else:
        method = methods[name]
        click.echo(f"{method.name}\n\n{method.doc}\n")
        if method.name in bricks():
            click.echo(
                f"stands {'before' if method.at == 'pre' else 'after'} a method, under '{method.at}:'; needs a base"
            )
        else:
            click.echo(_takes(method))
        click.echo("parameters:")
        for p in method.parameters:
            default = (
                "required"
                if p.required
                else f"default {_show.number(p.default)}"
                if p.default is not None
                else "optional"
            )
            click.echo(f"  {p.name}: {p.range}, {'one for each model' if p.per_model else 'shared'}, {default}")
            click.echo(f"      {p.doc}")
        if method.name not in bricks() and method.idle:
            click.echo(f"accepted without effect: {', '.join(method.idle)}")


def _takes(method: Any) -> str:
    fewest, most = method.inputs
    models = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
    return f"models: {models}{'' if method.base == 'ignored' else ' besides the base'}; base: {method.base}"


def _check(methods: list[Any]) -> None:
    """Exit 2 if one of the methods breaks its contract."""
    from plait.testing.methods import check

    broken = 0
    for method in methods:
        found = check(method)
        broken += len(found)
        click.echo(f"{method.name}: " + ("keeps the contract" if not found else "breaks the contract"))
        for sentence in found:
            click.echo(f"  {sentence}")
    click.get_current_context().exit(2 if broken else 0)


def _facts(method: Any) -> dict[str, Any]:
    own = (
        {"stands": method.at}
        if hasattr(method, "at")
        else {
            "base": method.base,
            "models": method.inputs,
            "space": method.space,
            "accepted_without_effect": list(method.idle),
        }
    )
    return {
        "name": method.name,
        "summary": method.summary,
        "doc": method.doc,
        "reference": method.reference,
        **own,
        "parameters": [
            {
                "name": p.name,
                "type": p.kind.__name__,
                "per_model": p.per_model,
                "required": p.required,
                "default": None if p.required else p.default,
                "range": p.range,
                "doc": p.doc,
            }
            for p in method.parameters
        ],
    }
