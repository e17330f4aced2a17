"""`plait push`: a model directory onto the Hub."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show


@click.command()
@click.argument("out", type=click.Path())
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private; one that is public is refused.")
@click.option("--create-pr", is_flag=True, help="As a pull request.")
@click.option("--revision", metavar="BRANCH", default=None, help="To this branch, which is made if there is none.")
@click.option("--message", default=None, help="The commit's message.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="The closing facts as JSON.")
def command(out: str, repo: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Send the model directory OUT to REPO (org/name) on the Hub, and compare what arrived.

    The repository is made if there is none. What the Hub already has is not sent again: repeat a push that was interrupted.
    """
    from pathlib import Path

    from plait.checkpoint.hub import silence
    from plait.publish import push

    if quiet:
        silence()
    done = push(Path(out).expanduser(), repo, **options)
    if as_json:
        _show.emit_json(facts(done))
    elif not quiet:
        tell(done)


def facts(done: Any) -> dict[str, Any]:
    """A `Pushed` as JSON types."""
    return {"repo": done.repo, "url": done.url, "commit": done.commit, "files": list(done.files), "bytes": done.nbytes}


def tell(done: Any) -> None:
    click.echo(f"pushed {len(done.files)} files, {_show.size(done.nbytes)}, each as it is here: {done.url}")
