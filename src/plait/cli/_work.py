"""What verbs that write a model do alike: say what is going to happen, show how far it is, say what came of it."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from plait.cli import _show
from plait.cli._options import TOLD, saved_how


def greet(options: Mapping[str, Any]) -> None:
    """Tell of the options in mergekit's spelling that have nothing left to do, as far as a user would want to hear of it."""
    asked = [name for name in TOLD if options[name] not in (None, False, "cpu", "auto")]
    _show.notes(dict.fromkeys(f"--{name.replace('_', '-')}: {TOLD[name]}" for name in asked), options["quiet"])
    if options["safe_serialization"] is False:
        _show.notes(["--no-safe-serialization: the weights are written as safetensors all the same"], options["quiet"])


def save(plan: Any, out: str, options: Mapping[str, Any], **more: Any) -> Any:
    """Write a plan to OUT under the options of `saving`; `more` is for `Merge.save`."""
    from plait.device import devices, refuse_limit
    from plait.estimate import memory, portions
    from plait.merged import Merge
    from plait.run import default_threads

    quiet, how = options["quiet"], saved_how(options)
    places = devices(how["device"], how["multi_gpu"])
    refuse_limit(places, how["max_memory"])
    _show.notes(plan.notes, quiet)
    if options["verbose"]:
        _show.notes(
            f"{len(d.names)} tensors of {plan.models[d.model].ref} are not in the output: {d.reason}"
            for d in plan.dropped
        )
    threads, piece = portions(plan, options["num_threads"] or default_threads(places), options["max_memory"])
    count = sum(bool(model.opened.files or model.opened.repo) for model in plan.models)
    if not quiet:
        click.echo(
            f"{plan.title} of {count} model{'s' * (count != 1)}: {len(plan.steps)} tensors, "
            f"reads {_show.size(plan.read_nbytes)}, writes {_show.size(plan.nbytes)} in {len(plan.shards)} "
            f"shard{'s' * (len(plan.shards) > 1)}, holds {_show.size(memory(plan, threads, piece))} in all"
            + (f", computes on {', '.join(places)}" if places else ""),
            err=True,
        )
    _fetching(plan, options["stream"], quiet)
    weights = sum(spec.nbytes for spec in plan.specs.values())
    gc.freeze()  # the plan stays: no need to look through it for garbage
    try:
        with _hint(out), _show.progress(weights, "merging", quiet) as tell:
            saved = Merge(plan).save(out, progress=tell, **{**how, "threads": threads, **more})
    finally:
        gc.unfreeze()
    if saved.untouched and not quiet:
        click.echo(f"{saved.out} holds this merge already, whole: every hash is right; nothing was written", err=True)
    elif saved.resumed and not quiet:
        click.echo(f"{saved.resumed} of {saved.tensors} tensors were there from before", err=True)
    if not (quiet or options["as_json"] or saved.untouched):
        speed = (plan.read_nbytes + saved.nbytes) / max(saved.seconds, 1e-9)
        click.echo(
            f"wrote {saved.out}: {saved.tensors} tensors, {_show.size(saved.nbytes)}, "
            f"in {_show.seconds(saved.seconds)} ({_show.size(speed)}/s read and written)"
        )
    return saved


def facts(saved: Any) -> dict[str, Any]:
    """What was written, as data."""
    return {
        "out": str(saved.out),
        "files": [path.name for path in saved.files],
        "tensors": saved.tensors,
        "bytes": saved.nbytes,
        "seconds": round(saved.seconds, 3),
        "resumed": saved.resumed,
    }


@contextmanager
def _hint(out: str) -> Iterator[None]:
    """When the merge stops, say that its work is kept, if it is."""
    from plait.errors import OutputError
    from plait.journal import NAME, read

    try:
        yield
    except BaseException as error:
        record = read(Path(out, NAME))
        if record and record.pid == os.getpid() and not (isinstance(error, OutputError) and "--resume" in str(error)):
            words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
            lax = ["--allow-nonfinite"] * ("--allow-nonfinite" in str(error))  # what else would stop there again
            again = shlex.join(["plait", *words, "--resume", *lax])
            click.echo(f"{len(record.tensors)} tensors are finished and kept; to go on: {again}", err=True)
        raise


def _fetching(plan: Any, stream: bool, quiet: bool) -> None:
    """Say what will come from the Hub; huggingface_hub shows how far it is."""
    from plait.checkpoint.hub import silence
    from plait.output.inputs import to_fetch

    files = to_fetch(plan)
    if files and quiet:
        silence()
    elif files and stream:
        click.echo(f"reads parts of {len(files)} files on the Hub", err=True)
    elif files:
        click.echo(f"fetches {len(files)} files from the Hub, {_show.size(sum(files.values()))}", err=True)
