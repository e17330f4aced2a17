"""What decides the bytes of a merge, so that a change of it is noticed: between a stop and a resume, and during a run."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import plait
from plait.errors import MergeError
from plait.journal import FINITE
from plait.plan import Plan

#: path -> what the system says of the file: inode, bytes, time of the last change in ns; None when it is gone
Stamps = Mapping[Path, tuple[int, int, int] | None]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PACKAGE = Path(plait.__file__).parent


def options(plan: Plan) -> dict[str, Any]:
    """What the caller decided when the merge was planned, but for the seed, which has a place of its own."""
    chosen = dataclasses.asdict(plan.options)
    return {name: value for name, value in chosen.items() if name != "seed"}


def key(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bytes of a merge with this provenance: equal keys mean equal bytes. A change is told by its part."""
    chosen = {name: value for name, value in facts["options"].items() if name != "allow_nonfinite"}
    return {
        "recipe": hashlib.sha256(facts["recipe"].encode("utf-8", "surrogatepass")).hexdigest(),
        "tensors": facts["plan"],
        "seed": facts["seed"],
        "options": chosen,
        "values": "any" if facts["options"].get("allow_nonfinite") else FINITE,
        "model": {model["model"]: [model["revision"], model["fingerprint"]] for model in facts["models"]},
        "methods": facts["methods"],
        "versions": {"plait": facts["plait"], **facts["versions"]},
    }


def times(plan: Plan, stamps: Stamps) -> dict[str, list[int | None]]:
    """When the weight files of each model were written, in ns; a fingerprint looks at a part of a file only."""
    return {str(m.ref): [(stamp := stamps.get(path)) and stamp[2] for path in m.opened.files] for m in plan.models}


def digest(plan: Plan) -> str:
    """SHA-256 of what is done to every tensor, and of where it is written."""
    digest = hashlib.sha256()
    for step in plan.steps:
        method = step.method.name if step.method else None
        made = (step.name, step.spec, step.inputs, step.base, method, step.params, step.depth)
        digest.update(_ADDRESS.sub("", repr(made)).encode("utf-8", "surrogatepass"))
    for shard in plan.shards:
        digest.update(shard.filename.encode() + shard.header)
    return digest.hexdigest()


def own_methods(plan: Plan) -> dict[str, str]:
    """Methods that are not plait's: name -> SHA-256 of the file that they are in."""
    used = {step.method.name: step.method for step in plan.steps if step.method}
    files = {name: Path(inspect.getsourcefile(method.function) or "") for name, method in used.items()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if path.is_file() and _PACKAGE not in path.parents
    }


def stamps(plan: Plan) -> Stamps:
    """Every weight file of the plan as it is now."""
    return stamped(path for model in plan.models for path in model.opened.files)


def stamped(paths: Iterable[Path]) -> Stamps:
    """Files as they are now."""
    return {path: _stamp(path) for path in paths}


def refuse_changed(before: Stamps, kept: str = "what was begun has been removed") -> None:
    """Raise `MergeError` when an input is not what it was: some of the output would be of the old, some of the new.

    `kept`: what became of the output.
    """
    for path, stamp in before.items():
        if (now := _stamp(path)) != stamp:
            raise MergeError(
                f"{path} {'was removed' if now is None else 'changed'} during the merge",
                wanted="inputs that stay as they are until the merge is done",
                found="no file" if now is None else _difference(stamp, now),
                do=f"leave the inputs alone, and run the merge again; {kept}",
            )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _difference(old: tuple[int, int, int] | None, new: tuple[int, int, int]) -> str:
    if old is None or old[0] != new[0]:
        return "another file of this name"
    return f"{old[1]} bytes before, {new[1]} now" if old[1] != new[1] else "the same size, written to since"
