"""`plait merge`: run a recipe."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from plait.cli import _show
from plait.cli._options import planning, prepared

#: options of mergekit-yaml that have nothing left to do here: (spelling, takes a value)
IDLE = (
    ("--lora-merge-cache", True),
    ("--device", True),
    ("--cuda/--no-cuda", False),
    ("--low-cpu-memory/--no-low-cpu-memory", False),
    ("--read-to-gpu/--no-read-to-gpu", False),
    ("--multi-gpu/--no-multi-gpu", False),
    ("--gpu-rich/--no-gpu-rich", False),
    ("--clone-tensors/--no-clone-tensors", False),
    ("--trust-remote-code/--no-trust-remote-code", False),
    ("--lazy-unpickle/--no-lazy-unpickle", False),
    ("--safe-serialization/--no-safe-serialization", False),
    ("--async-write/--no-async-write", False),
    ("--write-threads", True),
)
#: of these, the ones whose absence a user would want to hear of
TOLD = {
    "device": "plait computes on the CPU",
    "cuda": "plait computes on the CPU",
    "multi_gpu": "plait computes on the CPU",
    "gpu_rich": "plait computes on the CPU",
    "trust_remote_code": "no code of a model is ever run",
}


def idle(function: Any) -> Any:
    for spelling, valued in reversed(IDLE):
        kind: dict[str, Any] = {"type": str, "metavar": "X"} if valued else {"default": None}
        function = click.option(spelling, help="Nothing to do.", **kind)(function)
    return function


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("out", type=click.Path())
@planning
@click.option("--copy-tokenizer/--no-copy-tokenizer", default=True, help="Tokenizer files into OUT.  [default: yes]")
@click.option("--write-model-card/--no-write-model-card", default=True, help="README.md into OUT.  [default: yes]")
@click.option("--force", is_flag=True, help="Replace the model that is in OUT.")
@click.option("--resume", is_flag=True, help="Go on where a merge into OUT stopped.")
@click.option("--allow-nonfinite", is_flag=True, help="Write NaN and infinity too.")
@click.option("--hash-inputs", is_flag=True, help="Record the SHA-256 of every input file (reads them once more).")
@click.option("--stream", is_flag=True, help="Read models on the Hub from there, in parts; no copy in the cache.")
@click.option("--push", "push_to", metavar="REPO", default=None, help="Send the result to org/name on the Hub.")
@click.option("--private", is_flag=True, help="With --push: make the repository private.")
@click.option("-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]")
@click.option("-v", "--verbose", count=True, help="Say more.")
@click.option("--quiet/--no-quiet", help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="The closing facts as JSON.")
@idle
def command(recipe: str, out: str, **options: Any) -> None:
    """Run RECIPE and write the model directory OUT.

    Takes every option of mergekit-yaml; those with nothing left to do say so.
    """
    from plait.estimate import memory
    from plait.merged import Merge
    from plait.run import default_threads

    quiet = options["quiet"]
    asked = [name for name in TOLD if options[name] not in (None, False, "cpu", "auto")]
    _show.notes(dict.fromkeys(f"--{name.replace('_', '-')}: {TOLD[name]}" for name in asked), quiet)
    if options["safe_serialization"] is False:
        _show.notes(["--no-safe-serialization: the weights are written as safetensors all the same"], quiet)
    if options["push_to"]:
        from plait.publish import ready

        ready(options["push_to"])
    plan = prepared(recipe, options)
    _show.notes(plan.notes, quiet)
    if options["verbose"]:
        _show.notes(
            f"{len(d.names)} tensors of {plan.models[d.model].ref} are not in the output: {d.reason}"
            for d in plan.dropped
        )
    threads = options["num_threads"] or default_threads()
    if not quiet:
        click.echo(
            f"{plan.recipe.method} of {len(plan.models)} models: {len(plan.steps)} tensors, "
            f"reads {_show.size(plan.read_nbytes)}, writes {_show.size(plan.nbytes)} in {len(plan.shards)} "
            f"shard{'s' * (len(plan.shards) > 1)}, holds {_show.size(memory(plan, threads))} besides PyTorch",
            err=True,
        )
    _fetching(plan, options["stream"], quiet)
    with _hint(out), _show.progress(plan.nbytes, "merging", quiet) as tell:
        saved = Merge(plan).save(
            out,
            force=options["force"],
            threads=threads,
            copy_tokenizer=options["copy_tokenizer"],
            card=options["write_model_card"],
            hash_inputs=options["hash_inputs"],
            allow_nonfinite=options["allow_nonfinite"],
            progress=tell,
            stream=options["stream"],
            resume=options["resume"],
        )
    if saved.resumed and not quiet:
        click.echo(f"{saved.resumed} of {saved.tensors} tensors were there from before", err=True)
    facts: dict[str, Any] = {
        "out": str(saved.out),
        "files": [path.name for path in saved.files],
        "tensors": saved.tensors,
        "bytes": saved.nbytes,
        "seconds": round(saved.seconds, 3),
        "resumed": saved.resumed,
    }
    telling = not quiet and not options["as_json"]
    if telling:
        speed = (plan.read_nbytes + saved.nbytes) / max(saved.seconds, 1e-9)
        click.echo(
            f"wrote {saved.out}: {saved.tensors} tensors, {_show.size(saved.nbytes)}, "
            f"in {_show.seconds(saved.seconds)} ({_show.size(speed)}/s read and written)"
        )
        click.echo(f"next: AutoModelForCausalLM.from_pretrained({str(saved.out)!r}); the card is {saved.out}/README.md")
    if options["push_to"]:
        from plait.cli import push as verb
        from plait.output.card import rewrite
        from plait.publish import push

        if options["write_model_card"]:
            rewrite(saved.out, name=options["push_to"])
        pushed = push(saved.out, options["push_to"], private=options["private"])
        facts["pushed"] = verb.facts(pushed)
        if telling:
            verb.tell(pushed)
    if options["as_json"]:
        _show.emit_json(facts)


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
            again = shlex.join(["plait", *words, "--resume"])
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
