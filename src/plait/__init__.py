"""plait merges language models: it weaves the weights of several checkpoints into one.

    import plait

    merge = plait.merge("recipe.yml")      # or a dict; headers only, nothing is computed yet
    merge.read("model.norm.weight")        # one tensor of the result
    merge.save("out")                      # the whole model directory

Names are loaded when they are used, so importing plait is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.checkpoint import Checkpoint as Checkpoint
    from plait.checkpoint import InMemory as InMemory
    from plait.compute import merge_tensors as merge_tensors
    from plait.diff import compare as compare
    from plait.errors import PlaitError as PlaitError
    from plait.front import check as check
    from plait.front import inspect as inspect
    from plait.front import merge as merge
    from plait.front import open as open
    from plait.merged import Merge as Merge
    from plait.method import Method as Method
    from plait.reproduce import reproduce as reproduce
    from plait.verify import verify as verify

_HOME = {
    "Checkpoint": "checkpoint",
    "InMemory": "checkpoint",
    "merge_tensors": "compute",
    "compare": "diff",
    "PlaitError": "errors",
    "Merge": "merged",
    "check": "front",
    "inspect": "front",
    "merge": "front",
    "open": "front",
    "Method": "method",
    "reproduce": "reproduce",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("plait")
    if name in _HOME:
        return getattr(importlib.import_module(f"plait.{_HOME[name]}"), name)
    raise AttributeError(f"module 'plait' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
