"""`plait merge`: run a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._early import beginnings
from plait.cli._options import idle, planning, prepared, saving


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("out", type=click.Path())
@planning
@saving
@click.option("--resume", is_flag=True, help="Go on where a merge into OUT stopped.")
@click.option("--push", "push_to", metavar="REPO", default=None, help="Send the result to org/name on the Hub.")
@click.option("--private", is_flag=True, help="With --push: make the repository private.")
@idle
def command(recipe: str, out: str, **options: Any) -> None:
    """Run RECIPE and write the model directory OUT.

    Takes every option of mergekit-yaml; those with nothing left to do say so.
    """
    _work.greet(options)
    if options["push_to"]:
        from plait.publish import ready

        ready(options["push_to"])
    with beginnings(recipe):
        plan = prepared(recipe, options)
    saved = _work.save(plan, out, options, resume=options["resume"])
    facts = _work.facts(saved)
    telling = not options["quiet"] and not options["as_json"]
    if telling:
        click.echo(f"next: AutoModelForCausalLM.from_pretrained({str(saved.out)!r}); the card is {saved.out}/README.md")
    if options["push_to"]:
        from plait.cli import push as verb
        from plait.output.card import rewrite
        from plait.publish import push

        if options["write_model_card"]:
            rewrite(saved.out, name=options["push_to"])
        with _to_send(saved.out, options["push_to"], options["private"]):
            pushed = push(saved.out, options["push_to"], private=options["private"])
        facts["pushed"] = verb.facts(pushed)
        if telling:
            verb.tell(pushed)
    if options["as_json"]:
        _show.emit_json(facts)


@contextmanager
def _to_send(out: Path, repo: str, private: bool) -> Iterator[None]:
    """When the push stops, say that the merge is whole, and how to send it."""
    try:
        yield
    except BaseException:
        again = shlex.join(["plait", "push", str(out), repo, *["--private"] * private])
        click.echo(f"the merge is whole in {out}; to send it: {again}", err=True)
        raise
