"""What a merge brings from the Hub before it works: the weight files that its steps read, and what is copied beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from plait.checkpoint.source import Opened, fetched
from plait.output.sidefiles import tokenizer_donor
from plait.plan import Plan


def fetch(plan: Plan, weights: bool = True) -> Plan:
    """The plan with its models in the cache, as far as it reads them; each file's hash is compared with the Hub's.

    Without `weights` they stay on the Hub and are read by range requests. Raises `ModelError` for what cannot be had.
    """
    for inner in plan.nested:  # their models are the same objects that the merges read from
        fetch(inner, weights)
    reads = plan.reads()
    donors = {plan.donor, tokenizer_donor(plan)}
    models = [
        replace(model, opened=fetched(model.opened, reads[i] if weights else None, side_files=i in donors))
        for i, model in enumerate(plan.models)
    ]
    return replace(plan, models=tuple(models))


def to_fetch(plan: Plan) -> dict[str, int]:
    """Weight files that `fetch` would bring, `model: file` -> bytes."""
    inside = {name: size for inner in plan.nested for name, size in to_fetch(inner).items()}
    reads = plan.reads()
    return inside | {name: size for i, m in enumerate(plan.models) for name, size in m.opened.missing(reads[i]).items()}


def on_the_hub(opened: Opened) -> Iterator[dict[str, Any]]:
    """The weight files that were not fetched, as the Hub lists them; for the provenance of a merge that streams."""
    for name in opened.remote.names if opened.remote and opened.repo else ():
        assert opened.repo
        if name in opened.repo.lacks([name]):
            file = opened.repo.files[name]
            yield {"name": name, "bytes": file.size, "hub_sha256": file.sha256, "read": "from the Hub, in parts"}
