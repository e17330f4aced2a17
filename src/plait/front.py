"""The front door: a recipe in, a merge out that is a checkpoint not yet written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from plait import arch
from plait.checkpoint import Checkpoint
from plait.checkpoint.source import Opened, open_model
from plait.errors import PlaitError, Problems
from plait.merged import Merge
from plait.prepare import Source, prepare
from plait.recipe import Recipe
from plait.strands import Model
from plait.types import ModelRef


def open(model: str | os.PathLike[str] | ModelRef, *, cache: str | os.PathLike[str] | None = None) -> Checkpoint:
    """A model as a checkpoint, headers only: a folder, a weight file, a Hub id `org/name@revision`.

    Tensors of a Hub model that is not in the cache come over the network when they are read.
    """
    return _opened(model, cache).checkpoint


def inspect(model: str | os.PathLike[str] | ModelRef, *, cache: str | os.PathLike[str] | None = None) -> Model:
    """A model with its anatomy (`.arch`: modules, stacks, ties, vocabulary axes), from headers only."""
    opened = _opened(model, cache)
    return Model(opened, arch.infer(opened.checkpoint.specs, opened.checkpoint.config))


def _opened(model: str | os.PathLike[str] | ModelRef, cache: str | os.PathLike[str] | None) -> Opened:
    ref = model if isinstance(model, ModelRef) else ModelRef.parse(os.fspath(model))
    return open_model(ref, cache=Path(cache) if cache else None, fetch=False)


def check(source: Source | Recipe, **options: Any) -> list[PlaitError]:
    """Every problem of a recipe that can be found before the work; empty when there is none. Options as for `merge`."""
    try:
        prepare(source, **options)
    except Problems as found:
        return list(found.problems)
    except PlaitError as error:
        return [error]
    return []


def merge(source: Source | Recipe, **options: Any) -> Merge:
    """A merge that has not been written, from a recipe: a path, a text with line breaks, a dict, or a `Recipe`.

    Options are those of `prepare`: `lenient`, `shard_size` (bytes), `allow_crimes`, `truncate_embeddings`, `seed`, `cache`,
    `expert_layout` ("split" or "fused"; by default that of the base), and `lora_merge_dtype`, to which weights with an adapter
    are rounded ("bfloat16"; by default they are not).
    """
    return Merge(prepare(source, **options))
