"""What the merge was made of, so that it can be repeated: recipe, revisions, fingerprints of the inputs, versions, seed."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plait.checkpoint.source import Opened
from plait.plan import Plan

SAMPLES = 64
SAMPLE = 4096  # bytes


def provenance(plan: Plan, hash_inputs: bool = False) -> dict[str, Any]:
    """The content of `plait_provenance.json`. `hash_inputs`: SHA-256 of every input file, which reads them all once more."""
    return {
        "plait": version("plait"),
        "recipe": plan.recipe.text,
        "method": plan.recipe.method,
        "seed": plan.seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy", "safetensors")}},
        "models": [_model(model.opened, hash_inputs) for model in plan.models],
        "config_and_tokenizer_from": str(plan.models[plan.donor].ref),
        "output": {"tensors": len(plan.steps), "shards": [shard.filename for shard in plan.shards]},
        "dropped": [
            {"model": str(plan.models[d.model].ref), "reason": d.reason, "tensors": list(d.names)} for d in plan.dropped
        ],
        "notes": list(plan.notes),
    }


def _model(opened: Opened, hash_inputs: bool) -> Mapping[str, Any]:
    return {
        "model": str(opened.ref),
        "revision": opened.revision,
        **({"adapter_revision": opened.adapter_revision} if opened.ref.adapter else {}),
        "files": [
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "fingerprint": fingerprint(path),
                **({"sha256": _sha256(path)} if hash_inputs else {}),
            }
            for path in opened.files
        ],
    }


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's size, its first and last 4096 bytes, and 62 blocks of 4096 bytes spread evenly between them.

    It tells a changed file from an unchanged one in milliseconds; it is no proof against a forger, as `sha256` is.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(SAMPLES):
            file.seek(max(0, size - SAMPLE) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
