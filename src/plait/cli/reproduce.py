"""`plait reproduce`: make a merge once more, and compare the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plait.cli import _show


@click.command()
@click.argument("out", type=click.Path())
@click.argument("into", type=click.Path(), required=False)
@click.option(
    "--relative-to",
    type=click.Path(),
    default=None,
    metavar="FOLDER",
    help="Where the recipe lay, if its paths start there and it is no longer there.",
)
@click.option("--load", "loads", multiple=True, type=click.Path(), help="A Python file with methods of your own.")
@click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models.")
@click.option("--force", is_flag=True, help="Replace the model that is in INTO.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("--quiet/--no-quiet", help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def command(out: str, into: str | None, loads: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Make the merge in OUT again and compare every tensor and file. Exit 0 when they are the same, else 2.

    The recipe, the options, the seed and the commits of models on the Hub are those kept in OUT. The new one is written to
    INTO, or to a temporary folder beside OUT.
    """
    from plait.errors import MergeError, PlaitError
    from plait.methods import load
    from plait.reproduce import reproduce

    for file in loads:
        load(file)
    total = sum(path.stat().st_size for path in Path(out).glob("*.safetensors"))
    try:
        with _show.progress(total, "merging", quiet or as_json) as tell:
            found = reproduce(
                out,
                into,
                relative_to=options["relative_to"],
                cache=options["cache"],
                threads=options["num_threads"],
                force=options["force"],
                progress=tell,
            )
    except PlaitError as error:
        if "check the path" in str(error) and not options["relative_to"]:
            _show.notes(["if the recipe lay elsewhere, say where: --relative-to FOLDER"], quiet)
        raise
    if as_json:
        _show.emit_json(
            {
                "out": str(found.out),
                "into": str(found.into) if found.into else None,
                "same": found.same,
                "tensors": found.tensors,
                "differ": list(found.differ),
                "files": list(found.files),
                "changed": list(found.changed),
            }
        )
        click.get_current_context().exit(0 if found.same else 2)
    _show.notes([f"not as it was then: {', '.join(found.changed)}"] if found.changed else [], quiet)
    if not found.same:
        raise MergeError(
            f"the merge of the recipe in {found.out} is another one now",
            wanted=f"the bytes that are in {found.out}",
            found="; ".join(
                f"{len(names)} {what}: {', '.join(names[:4])}{' …' * (len(names) > 4)}"
                for what, names in ((f"of {found.tensors} tensors", found.differ), ("files", found.files))
                if names
            ),
            do="bring back what is not as it was then, or verify OUT: plait verify",
        )
    if not quiet:
        click.echo(f"the same: {found.tensors} tensors and every file beside them")
