"""A checkpoint under other names: the tensors are the inner one's, and so are their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plait.checkpoint import Checkpoint, Rows, home
from plait.errors import ModelError
from plait.types import TensorSpec

if TYPE_CHECKING:
    import torch


class Renamed:
    """`inner` with some names changed: `names` is old -> new; a tensor that it does not name keeps its own.

    Raises `ModelError` when two tensors would have one name.
    """

    def __init__(self, inner: Checkpoint, names: Mapping[str, str]) -> None:
        self._inner = inner
        self._old = {names.get(name, name): name for name in inner.specs}
        if len(self._old) < len(inner.specs):
            twice = next(new for name in inner.specs if self._old[new := names.get(name, name)] != name)
            found = ", ".join(name for name in inner.specs if names.get(name, name) == twice)
            raise ModelError(
                f"two tensors would be called {twice}",
                wanted="one",
                found=found,
                do="remove the one that the model does not use",
            )
        self.specs: Mapping[str, TensorSpec] = {new: inner.specs[old] for new, old in self._old.items()}
        self.home: Mapping[str, str] = {new: home(inner, old) for new, old in self._old.items()}

    @property
    def config(self) -> Mapping[str, Any]:
        return self._inner.config

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        return self._inner.read(self._old[name], rows)
