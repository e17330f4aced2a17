"""Write a plan's model directory: shards first, then index, side files, card and provenance, config.json last."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.compute import ROOMY
from plait.device import devices, refuse_limit
from plait.errors import OutputError, reason
from plait.estimate import portions
from plait.journal import HASH, NAME, refuse_leftover
from plait.layout import index_json, index_name
from plait.output.card import card, title
from plait.output.identity import digest, key, options, own_methods, refuse_changed, stamped, stamps, times
from plait.output.inputs import fetch
from plait.output.provenance import provenance
from plait.output.sidefiles import clear, side_files
from plait.output.whole import PROVENANCE, finished, json_text, refuse_other
from plait.plan import Plan
from plait.run import Ahead, Progress, default_threads, run
from plait.writer import Writer, check_files, check_output, reserved

_OTHERS = 64  # files that a process has open besides its models


@dataclass(frozen=True)
class Saved:
    """What was written."""

    out: Path
    files: tuple[Path, ...]
    tensors: int
    nbytes: int  # of the shards
    seconds: float
    resumed: int = 0  # tensors that were there from before
    untouched: bool = False  # it was whole already, and nothing was written


def save(
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    copy_tokenizer: bool = True,
    write_card: bool = True,
    hash_inputs: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    stream: bool = False,
    resume: bool = False,
    stage: str | None = None,
    device: str | None = None,
    multi_gpu: bool = False,
    max_memory: int | None = None,
) -> Saved:
    """Run the plan into the directory `out`; raises before any work where it can, and leaves no half-written model behind.

    Models on the Hub are brought into the cache first; with `stream` their weights are read from the Hub in parts. What a merge
    that stopped has finished for good stays in `out`, and `resume` goes on from there, or finds this very merge whole. A `stage`
    of a merge in several is written under that name: with `resume` it is made anew where another of this name lies. `device` and
    `multi_gpu`: see `plait.device`; `max_memory`: bytes that the process may hold, with threads and pieces to suit.
    """
    begun = time.monotonic()
    places = devices(device, multi_gpu)
    refuse_limit(places, max_memory)
    threads, piece = portions(plan, threads or default_threads(places), max_memory)
    refuse_leftover(out, len(plan.steps), force, resume)
    begins = force or (resume and (out / NAME).exists())
    perhaps = resume and not begins and (out / PROVENANCE).is_file()  # this merge, whole
    if stage is not None and perhaps:
        refuse_other(out, stage)
    space = plan.nbytes - reserved(out, plan.shards)
    check_output(out, space, _inputs(plan), begins or perhaps)
    plan = fetch(plan, weights=not stream)
    check_files(2 * len(plan.shards) + _files(plan) + _OTHERS)
    with Ahead(plan, () if resume else plan.steps):  # the disk has something to do meanwhile
        beside = side_files(plan, copy_tokenizer)
        small = stamped(beside.copied.values())
        facts = {**provenance(plan, hash_inputs, beside.chat_template), "side_files": dict(beside.origins)}
        text = card(facts, title(out)) if write_card else None
        choices: dict[str, object] = {
            "copy_tokenizer": copy_tokenizer,
            "write_card": write_card,
            "allow_nonfinite": allow_nonfinite,
        }
        choices |= {"device": places[0].partition(":")[0]} if places else {}
        facts |= {"stage": stage} if stage is not None else {}
        facts |= {"options": {**options(plan), **choices}, "plan": digest(plan), "methods": own_methods(plan)}
        texts = _texts(plan)
        facts["output"]["files"] = beside.hashes() | {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
        }
        if plan.recipe.path:  # paths in it are looked for beside it
            facts["recipe_file"] = os.path.relpath(plan.recipe.path, out)
        before = stamps(plan)
        if perhaps and finished(out, facts, before):
            files = [out / name for name in (*facts["output"]["shards"], *facts["output"]["files"], PROVENANCE)]
            return Saved(
                out, tuple(files), len(plan.steps), plan.nbytes, time.monotonic() - begun, len(plan.steps), True
            )
    anew = perhaps and stage is not None
    check_output(out, space, _inputs(plan), begins or anew)
    again = force or stage is not None
    decides = {**key(facts), "files written": times(plan, before)}
    with Writer(out, plan.shards, plan.specs, decides, resume=resume, force=again, block=ROOMY * piece) as writer:
        if progress:
            progress(sum(plan.specs[name].nbytes for name in writer.kept))
        try:
            run(
                plan,
                writer.write,
                threads=threads,
                check=not allow_nonfinite,
                progress=progress,
                skip=writer.kept,
                piece=None if places else piece,
                devices=places,
                rooms=writer.room if writer.past_cache else None,
            )
        finally:
            writer.discard = True
            refuse_changed(before)  # which tells more than what came of it
            writer.discard = False
        kept = len(writer.kept)
        files = writer.finish(before=lambda: clear(out))
        last = texts.pop("config.json", None)
        facts["output"] |= {"hash": HASH, "hashes": {name: writer.hashes[name] for name in plan.specs}}
        texts[PROVENANCE] = json_text(facts)
        texts |= {"README.md": text} if text is not None else {}
        texts |= {"config.json": last} if last is not None else {}
        refuse_changed(small, "the weights are kept, for --resume")
        try:
            files += beside.write(out)
            files += [_write(out / name, text) for name, text in texts.items()]
        except OSError as error:
            raise OutputError(
                f"writing to {out} failed after the weights",
                wanted="a disk that takes the output",
                found=reason(error),
                do="free some space and run the merge again with --resume",
            ) from error
        writer.close(files)
    return Saved(out, tuple(files), len(plan.steps), plan.nbytes, time.monotonic() - begun, kept)


def _texts(plan: Plan) -> dict[str, str]:
    """What is written beside the weights by the plan alone: index, recipe, config."""
    several = len(plan.shards) > 1
    return {
        **({index_name(plan.shards): index_json(plan.specs, plan.shards)} if several else {}),
        "plait_config.yml": plan.recipe.text,
        **({"config.json": json_text(plan.config)} if plan.config else {}),
    }


def _inputs(plan: Plan) -> Iterator[Path]:
    """Every folder and file that the models are read from."""
    for model in plan.models:
        yield from model.opened.files
        if (folder := model.opened.folder) and folder.is_dir():
            yield folder
            yield from (path for path in folder.iterdir() if path.is_file())


def _files(plan: Plan) -> int:
    """How many files hold the inputs."""
    return sum(len(model.opened.files) for model in plan.models) + sum(map(_files, plan.nested))


def _write(path: Path, text: str) -> Path:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path
