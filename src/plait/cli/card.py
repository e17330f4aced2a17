"""`plait card`: write the model card of a merge anew."""

from __future__ import annotations

from pathlib import Path

import click

from plait.cli import _show


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", help="What to call the model.  [default: the folder's name]")
@click.option("--template", type=click.Path(path_type=Path), help="A Jinja template of your own.")
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="What `plait eval --json` printed.")
@click.option("--force", is_flag=True, help="Write over a card that was changed by hand.")
@click.option("--json", "as_json", is_flag=True, help="The front matter as JSON, besides.")
def command(
    out: Path, name: str | None, template: Path | None, scores_file: Path | None, force: bool, as_json: bool
) -> None:
    """Write the card of the merge in OUT anew, from its provenance and its scores.

    Scores are kept in OUT, so the next card has them too.
    """
    from plait.output.card import read_facts, rewrite
    from plait.output.parents import front_matter
    from plait.output.scores import chosen

    facts = read_facts(out)
    scores = chosen(scores_file, out) if scores_file else None
    text = rewrite(out, name=name, template=template, scores=scores, force=force)
    if as_json:
        _show.emit_json({"card": str(out / "README.md"), "front_matter": front_matter(out / "README.md")})
        return
    click.echo(f"wrote {out / 'README.md'}: {len(text.splitlines())} lines, {len(facts['models'])} models")
