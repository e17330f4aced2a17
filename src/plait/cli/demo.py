"""`plait demo`: the whole story on the bundled models."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Directory to work in.")
@click.option("--quick", is_flag=True, help="Ask 100 questions a skill instead of 500.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers into this file.")
def command(out: Path, quick: bool, json_file: Path | None) -> None:
    """Merge four small bundled models by several recipes, and score all of them. Needs no network; takes seconds.

    Models, recipes and merges stay in the directory, to be changed and played again.
    """
    from plait.demo.show import show

    show(out, quick=quick, json_file=json_file)
