"""`plait export`: a model, or a merge that need not be written, in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plait.cli import _show
from plait.cli._options import planning, prepared


@click.group(cls=_show.Listed)
def command() -> None:
    """Write a model in the format of another program: gguf, for llama.cpp and Ollama."""


@command.command("gguf")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type", "type_", default=None, help="F32, F16, BF16, Q8_0, Q5_1, Q4_0, …  [default: as the model has it]"
)
@click.option("--name", default=None, help="What the model is called in the file.  [default: as MODEL]")
@click.option("--pre", default=None, help="llama.cpp's name of the pre-tokenizer, where plait does not know it.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("--quiet/--no-quiet", help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="The closing facts as JSON.")
@planning
def gguf(model: str, out: Path, type_: str | None, name: str | None, pre: str | None, **options: Any) -> None:
    """Write MODEL as a GGUF file, with its tokenizer and chat template, and a Modelfile for Ollama.

    MODEL is a folder, a Hub id, either with an adapter (base+adapter), or a recipe, whose merge need not be written. OUT is a
    file that ends in .gguf, or a folder for one.
    """
    import json

    from plait.export.gguf import export
    from plait.export.write import write

    recipe = model if Path(model).suffix in (".yml", ".yaml") else None
    text = recipe or f"merge_method: passthrough\nmodels:\n  - model: {json.dumps(model)}\n"
    force, quiet, as_json, threads = (options.pop(key) for key in ("force", "quiet", "as_json", "num_threads"))
    plan = prepared(text, {**options, "expert_layout": "split"})  # from which a file's own layout is made
    called = name or (Path(recipe).stem if recipe else Path(model).resolve().name if Path(model).exists() else model)
    ready = export(plan, out.expanduser(), name=called.rsplit("/", 1)[-1], type=type_, pre=pre, force=force)
    _show.notes([*plan.notes, *ready.notes], quiet)
    with _show.progress(ready.nbytes, "writing", quiet) as tell:
        done = write(ready, threads, tell)
    facts = {
        "out": str(done.out),
        "modelfile": str(done.modelfile),
        "type": done.type,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "seconds": round(done.seconds, 3),
        "notes": list(ready.notes),
    }
    if as_json:
        _show.emit_json(facts)
    elif not quiet:
        size, seconds = _show.size(done.nbytes), _show.seconds(done.seconds)
        click.echo(f"wrote {done.out}: {done.tensors} tensors as {done.type}, {size}, in {seconds}")
        click.echo(f"next: llama-cli -m {done.out}, or ollama create NAME -f {done.modelfile}")
