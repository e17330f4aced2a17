"""`plait eval`: score models and recipes side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from plait.cli import _show
from plait.cli._options import planning, prepared
from plait.evaluate.tasks import kinds


def tasks_of_kinds(function: Any) -> Any:
    """An option for each kind of task."""
    for kind in reversed(kinds()):
        function = click.option(kind.OPTION, multiple=True, metavar=kind.METAVAR, help=kind.HELP)(function)
    return function


@click.command()
@click.argument("models", nargs=-1, required=True)
@tasks_of_kinds
@click.option("--task-folder", multiple=True, type=click.Path(path_type=Path), help="YAML tasks of lm-eval's kind.")
@click.option("--against", multiple=True, help="A model to compare with; may be repeated.  [default: the first]")
@click.option("--limit", type=click.IntRange(1), help="Only the first N items of each task.")
@click.option("--window", type=click.IntRange(2), help="Tokens of context for --text.  [default: up to 2048]")
@click.option("--stride", type=click.IntRange(1), help="Tokens from window to window.  [default: half a window]")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@click.option("--chat", is_flag=True, help="Ask in the model's chat template.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Prompts worked on together.")
@click.option("--device", default=None, help="cpu, cuda, …  [default: cuda if there is one]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--items", type=click.IntRange(0), default=0, help="Show so many of the items that changed.")
@click.option("--card", is_flag=True, help="Scores into the cards of the merges among MODELS.")
@click.option("--cache", "answers", type=click.Path(path_type=Path), help="Folder of answers given before.")
@click.option("--fresh", is_flag=True, help="Ask everything anew.")
@click.option("--markdown", "as_markdown", is_flag=True, help="A Markdown table.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, with the items that changed.")
@click.option("--quiet", is_flag=True, help="No progress.")
@planning
def command(models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS (folders, Hub ids, or recipes, whose merge need not be written) at the same tasks, side by side.

    Shows each score with its 95 % interval, and how far each model is from its parents on the same items.
    Work that was stopped goes on where it was.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from plait.evaluate import tables
    from plait.evaluate.compare import compare
    from plait.evaluate.reading import TaskError
    from plait.evaluate.records import Settings
    from plait.evaluate.subjects import Machine, subjects
    from plait.output.card import check_card, rewrite
    from plait.output.scores import of_model

    keys = ("limit", "window", "stride", "max_tokens", "chat", "batch")
    settings = Settings(**{key: options[key] for key in keys}, task_folders=options["task_folder"])
    asked = [(kind, value) for kind in kinds() for value in options[kind.OPTION.removeprefix("--")]]
    if not asked:
        raise TaskError(
            "there is nothing to ask the models",
            wanted="one of " + ", ".join(kind.OPTION for kind in kinds()),
            do="plait eval --help tells what each takes",
        )
    tasks = distinct([task for kind, value in asked for task in kind.tasks(value, settings)])
    machine = Machine(options["device"] or best_device(), options["dtype"])
    cache = Path(options["cache"]) if options["cache"] else None
    found = subjects(models, machine, cache, lambda text: prepared(text, dict(options)))
    cards = [s for s in found if s.path and (s.path / "plait_provenance.json").is_file()] if options["card"] else []
    for subject in cards:
        check_card(subject.folder())
    called = dict(zip(dict.fromkeys(models), (subject.name for subject in found), strict=True))
    done = compare(
        found,
        tasks,
        against=[called.get(text, text) for text in options["against"]],
        cache=options["answers"],
        fresh=options["fresh"],
        progress=lambda total: _show.counting(total, "asking", options["quiet"]),
    )
    facts = tables.as_json(done)
    for subject in cards:
        rewrite(subject.folder(), scores=of_model(facts, subject.name))
    if options["as_json"]:
        _show.emit_json(facts)
    elif options["as_markdown"]:
        click.echo(tables.markdown(done))
    else:
        click.echo(tables.plain(done, options["items"]))
    _show.notes((f"scores are in {subject.folder()}/README.md" for subject in cards), options["quiet"])


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def distinct(tasks: list[Any]) -> list[Any]:
    """The tasks, refusing two of one name."""
    from plait.evaluate.reading import TaskError

    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise TaskError(f"two tasks are called {name}", wanted="different names", do="rename one of the files")
    return tasks
