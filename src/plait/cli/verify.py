"""`plait verify`: is a model what it was when it was written?"""

from __future__ import annotations

from pathlib import Path

import click

from plait.cli import _show


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.option("--quiet/--no-quiet", help="Say nothing but what is wrong.")
def command(out: Path, as_json: bool, quiet: bool) -> None:
    """Check the model in OUT: hashes, index, shapes against its config, finite values, card. Exit 0, or 2.

    OUT is what `plait merge` wrote; of other models in safetensors everything is checked but the hashes.
    """
    from plait.verify import verify

    found = verify(out)
    if as_json:
        _show.emit_json(
            {
                "out": str(found.out),
                "ok": not found.problems,
                "tensors": found.tensors,
                "bytes": found.nbytes,
                "checks": dict(found.checks),
                "problems": [problem.as_json() for problem in found.problems],
            }
        )
    else:
        if not quiet:
            click.echo(f"{found.out}: {found.tensors} tensors, {_show.size(found.nbytes)}")
            _show.columns(list(found.checks.items()))
        for problem in found.problems:
            click.echo(f"error: {problem}", err=True)
        if not found.problems and not quiet:
            click.echo("nothing is wrong")
    click.get_current_context().exit(2 if found.problems else 0)
