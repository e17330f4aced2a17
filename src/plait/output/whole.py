"""Is a model directory whole? Its provenance holds a hash of each tensor and of each file beside the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import SafetensorsFiles, read_json, weight_files
from plait.errors import ModelError, OutputError, PlaitError
from plait.journal import HASH, changes, digest
from plait.output.hashes import sha256
from plait.output.identity import Stamps

PROVENANCE = "plait_provenance.json"
_DECIDES = ("recipe", "models", "seed", "options", "methods", "plait", "versions")


#: what stands in a provenance, as far as plait reads it again; lists are of mappings
_SHAPE: Mapping[str, type] = {
    **dict.fromkeys(("plait", "recipe", "method", "command", "recipe_file", "stage"), str),
    **dict.fromkeys(("models", "settings", "stacking", "nested"), list),
    **dict.fromkeys(("output", "options", "versions", "side_files", "methods"), dict),
    "seed": int,
}


def read_provenance(folder: Path) -> dict[str, Any]:
    """What the merge in `folder` recorded, nothing without such a file; raises `ModelError` for one of another shape."""
    path = folder / PROVENANCE
    return refuse_shape(read_json(path)) if path.is_file() else {}


def refuse_shape(facts: dict[str, Any]) -> dict[str, Any]:
    """The same facts; raises `ModelError` where they are no provenance's."""
    for key, value in facts.items():
        kind = _SHAPE.get(key, object)
        if not isinstance(value, kind) or (isinstance(value, list) and kind is list and not _mappings(value)):
            raise ModelError(
                f"{PROVENANCE} cannot be what a merge wrote",
                wanted="a list of mappings" if kind is list else f"a {kind.__name__}",
                found=f"{key}: {ascii(value)[:60]}",
                do="it was changed, or is from another plait: run the merge again, from plait_config.yml",
            )
    return facts


def _mappings(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def tensor_hashes(folder: Path) -> dict[str, str]:
    """The hash of the bytes of every tensor, as a provenance has it; raises `ModelError` for weights that cannot be read."""
    found = SafetensorsFiles(weight_files(folder), {})
    hashes: dict[str, str] = {}
    for name, extent in found.extents.items():
        with open(extent.path, "rb", buffering=0) as file:
            hashes[name] = digest(file.fileno(), extent.offset, extent.spec.nbytes)
    return hashes


def finished(out: Path, facts: Mapping[str, Any], before: Stamps) -> bool:
    """Whether `out` holds, whole, the very merge that would have the provenance `facts`, but for the hashes of its tensors.

    Inputs that were written to since count as others, also where their fingerprints are the same.
    """
    try:
        path = out / PROVENANCE
        text, written = path.read_text("utf-8"), path.stat().st_mtime_ns
        output = json.loads(text)["output"]
        expected = {**facts, "output": {**facts["output"], "hash": HASH, "hashes": output["hashes"]}}
        return (
            text == json_text(expected)
            and all(stamp is not None and stamp[2] <= written for stamp in before.values())
            and all(sha256(out / name) == hashed for name, hashed in output["files"].items())
            and tensor_hashes(out) == output["hashes"]
        )
    except (OSError, PlaitError, ValueError, LookupError, TypeError, AttributeError):
        return False


def refuse_other(out: Path, stage: str) -> None:
    """Raise `OutputError` for a folder that does not hold a stage of this name, of any recipe."""
    facts = read_provenance(out)
    if (name := facts.get("stage")) != stage:
        raise OutputError(
            f"{out} is not the stage {stage!r} of an earlier run",
            wanted="a stage that plait wrote, or no such folder",
            found=f"the stage {name!r}" if name else "a merge that is no stage",
            do="choose another folder for the stages, or pass --force to replace what is there",
        )


def recipe_in_place(folder: Path, facts: Mapping[str, Any]) -> Path | None:
    """The recipe in its first place, where the paths in it hold, if it is there and still says what it said."""
    named = facts.get("recipe_file")
    file = folder / named if isinstance(named, str) else None
    try:
        return file if file and file.read_text("utf-8").strip() == str(facts.get("recipe")).strip() else None
    except (OSError, ValueError):
        return None


def pins(facts: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    """The commits that the models and their adapters had, those of nested merges among them, as `prepare` takes them."""
    for model in facts.get("models") or ():
        own, adapter = (m if isinstance(m, str) else None for m in map(model.get, ("revision", "adapter_revision")))
        if own or adapter:
            yield str(model.get("model")), (own, adapter)
    for inner in facts.get("nested") or ():
        yield from pins(refuse_shape(inner))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two provenances differs, of all that decides the bytes."""
    streamed = {
        m["model"] for facts in (then, now) for m in facts.get("models") or () if any("read" in f for f in _files(m))
    }

    def plain(key: str, value: Any) -> Any:
        if key != "models":
            return value
        # of a file that was read in parts there is no more than the hash that the Hub has
        hashes = {m["model"]: {str(f.get("name")): f.get("hub_sha256") for f in _files(m)} for m in value or ()}
        return {
            m["model"]: [m["revision"], hashes[m["model"]] if m["model"] in streamed else m["fingerprint"]]
            for m in value or ()
        }

    return changes(*({key: plain(key, facts.get(key)) for key in _DECIDES} for facts in (then, now)))


def _files(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = model.get("files")
    return [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []


def listed(files: object) -> dict[str, str]:
    """File name -> SHA-256 as a provenance has them; raises `ModelError` for names that leave the folder, or no such list."""
    good = isinstance(files, dict) and all(
        isinstance(name, str) and isinstance(hashed, str) and name.isprintable() and not _leaves(name)
        for name, hashed in files.items()
    )
    if not isinstance(files, dict) or not good:
        raise ModelError(
            f"{PROVENANCE} lists no files of its folder",
            wanted="files: {name: SHA-256}",
            found=ascii(files)[:80],
            do="it is not as plait wrote it: make the merge again",
        )
    return files


def _leaves(name: str) -> bool:
    return os.path.isabs(name) or ".." in name.replace("\\", "/").split("/")


def json_text(data: object) -> str:
    """JSON as plait writes it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
