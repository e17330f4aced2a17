"""What the merge was made of, so that it can be repeated: recipe, revisions, fingerprints of the inputs, versions, seed."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plait.checkpoint.source import Opened, local_path
from plait.errors import ModelError
from plait.methods import registry
from plait.output.depths import stacking, values
from plait.output.hashes import fingerprint, sha256
from plait.output.inputs import on_the_hub
from plait.output.parents import stated
from plait.output.sidefiles import tokenizer_donor
from plait.plan import Plan
from plait.types import DTYPES

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def provenance(plan: Plan, hash_inputs: bool = False, chat_template: bool = False) -> dict[str, Any]:
    """The content of `plait_provenance.json`. `hash_inputs`: SHA-256 of every input file, which reads them all once more."""
    method = registry()[plan.recipe.method]
    name, summary, paper = method.name, f"{method.summary[:1].lower()}{method.summary[1:]}", method.reference
    if plan.made:
        name, summary, paper = plan.made.name, plan.made.summary, plan.made.paper
    return {
        "plait": version("plait"),
        "recipe": plan.recipe.text,
        "method": name,
        "summary": summary,
        "paper": paper,
        "command": plan.made.command if plan.made else f"plait merge plait_config.yml OUT --random-seed {plan.seed}",
        "settings": values(plan),
        "stacking": stacking(plan),
        "seed": plan.seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy", "safetensors")}},
        "models": [
            _model(plan, i, hash_inputs)
            for i, model in enumerate(plan.models)
            if model.opened.files or model.opened.repo
        ],
        **({"nested": [provenance(inner, hash_inputs) for inner in plan.nested]} if plan.nested else {}),
        "config_and_tokenizer_from": str(plan.models[plan.donor].ref),
        "output": {
            "tensors": len(plan.steps),
            "shards": [shard.filename for shard in plan.shards],
            "parameters": sum(step.spec.numel for step in plan.steps),
            "dtypes": sorted({DTYPES[step.spec.dtype].name for step in plan.steps}),
            "architecture": (plan.config.get("architectures") or [None])[0],
            "chat_template": chat_template,
        },
        "dropped": [
            {"model": str(plan.models[d.model].ref), "reason": d.reason, "tensors": list(d.names)} for d in plan.dropped
        ],
        "notes": list(plan.notes),
    }


def _model(plan: Plan, index: int, hash_inputs: bool) -> Mapping[str, Any]:
    opened = plan.models[index].opened
    roles = (["base"] if opened.ref == plan.recipe.base else []) + (["config"] if index == plan.donor else [])
    if index == tokenizer_donor(plan) != plan.donor:
        roles.append("tokenizer")
    inside = [m.ref for inner in plan.nested for m in inner.models] if plan.made else []
    merged = opened.ref in inside or any(source.model == index for step in plan.steps for source in step.inputs)
    return {
        "model": str(opened.ref),
        "hub": [
            ref
            for ref in (opened.ref.path, opened.ref.adapter)
            if ref and _HUB_ID.fullmatch(ref) and not local_path(ref)
        ],
        "revision": opened.revision,
        **({"adapter_revision": opened.adapter_revision} if opened.ref.adapter else {}),
        "roles": (["merged"] if merged else []) + roles,
        "stated": stated(opened.folder),
        "fingerprint": together(opened),
        "files": [*(_file(opened, path, hash_inputs) for path in opened.files), *on_the_hub(opened)],
    }


def _file(opened: Opened, path: Path, hash_inputs: bool) -> dict[str, Any]:
    listed = opened.repo.files.get(path.name) if opened.repo and path.parent == opened.folder else None
    facts: dict[str, Any] = {"name": path.name, "bytes": path.stat().st_size, "fingerprint": fingerprint(path)}
    facts |= {"hub_sha256": listed.sha256} if listed and listed.sha256 else {}
    if hash_inputs:
        facts["sha256"] = sha256(path)
        if facts.get("hub_sha256", facts["sha256"]) != facts["sha256"]:
            raise ModelError(
                f"{path.name} of {opened.ref} in the cache is not the file that the Hub has",
                wanted=f"SHA-256 {facts['hub_sha256']}",
                found=str(facts["sha256"]),
                do=f"remove {path.resolve()} and run the merge again: it is downloaded anew",
            )
    return facts


def together(opened: Opened) -> str:
    """One short fingerprint of all weight files."""
    streamed = [str(file["hub_sha256"]) for file in on_the_hub(opened)]
    return hashlib.sha256("".join([*map(fingerprint, opened.files), *streamed]).encode()).hexdigest()[:12]
