"""The one seam: where tensors come from.

A `Checkpoint` has three members. A directory, a Hub model, a LoRA over a base, a realigned vocabulary, a merge that has
not been written: each is one, and nothing else in plait knows the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from plait.types import TensorSpec

if TYPE_CHECKING:
    import torch

Rows = tuple[int, int]


@runtime_checkable
class Checkpoint(Protocol):
    """Named tensors and a config. Reading is thread-safe and lazy; opening reads headers only."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json as data; empty when there is none."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of every tensor, in the order of the files."""

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        """The tensor, on the CPU, in its stored dtype; the caller owns the memory.

        With `rows = (start, stop)` only those rows of the tensor seen as a matrix (`TensorSpec.matrix`: the last axis
        is the columns, a vector is one column), shape `[stop - start, columns]`.
        """


def home(checkpoint: Checkpoint, name: str) -> str:
    """The dtype code that a merge gives a tensor of this checkpoint when the recipe names none.

    That is its own dtype; a view that computes more exactly than its files are stored (an adapter over bfloat16 weights, a
    dequantised tensor) has a mapping `home` of the files' dtypes.
    """
    known: Mapping[str, str] = getattr(checkpoint, "home", {})
    return known.get(name, checkpoint.specs[name].dtype)


def stored_nbytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes that are read for a tensor: its own, unless a view that makes it of others has them in a mapping `stored`."""
    known: Mapping[str, int] = getattr(checkpoint, "stored", {})
    return known.get(name, checkpoint.specs[name].nbytes)


def held_nbytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes that a thread holds while it reads a tensor in pieces: none, unless a view has them in a mapping `held`."""
    known: Mapping[str, int] = getattr(checkpoint, "held", {})
    return known.get(name, 0)


def notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a view has to say of what it does: it may have these sentences as `notes`."""
    told: tuple[str, ...] = getattr(checkpoint, "notes", ())
    return told


def cut(tensor: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    """A tensor that is in memory, or `rows` of it, as `Checkpoint.read` returns them: a copy."""
    import torch

    tensor = tensor.detach()
    if rows is not None:
        tensor = tensor.reshape(TensorSpec("F32", tuple(tensor.shape)).matrix)[rows[0] : rows[1]]
    return tensor.clone(memory_format=torch.contiguous_format)


class InMemory:
    """A checkpoint of tensors that are already there; for tests, notebooks and models made in Python."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> None:
        from plait.checkpoint.dtypes import spec_of

        self.config: Mapping[str, Any] = dict(config or {})
        self.specs: Mapping[str, TensorSpec] = {name: spec_of(tensor, name) for name, tensor in tensors.items()}
        self._tensors = dict(tensors)

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        return cut(self._tensors[name].cpu(), rows)
