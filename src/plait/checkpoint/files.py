"""Tensors that lie in files as they are, read with `pread`.

Mapped files would be as fast, but one that becomes shorter meanwhile would kill the process instead of ending in a message.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plait.checkpoint import Rows
from plait.checkpoint.ahead import ahead
from plait.checkpoint.dtypes import torch_dtype
from plait.checkpoint.header import Extent
from plait.errors import ModelError
from plait.lazy import torch
from plait.types import TensorSpec

AHEAD = 1 << 22  # bytes of a tensor that are fetched at once


def failed(path: Path, number: int = 0) -> ModelError:
    """What to raise for weights that cannot be read: `number` is that of the system's error, 0 where the file ended."""
    if not number:
        return ModelError(
            f"{path} became shorter during the merge",
            wanted="inputs that stay as they are",
            found="its end, where it had weights",
            do="leave the inputs alone, and run the merge again",
        )
    return ModelError(
        f"{path} cannot be read",
        wanted="the bytes of its tensors",
        found=os.strerror(number),
        do="look after its disk, or copy the file to another, and run the merge again",
    )


def read_extent(spec: TensorSpec, rows: Rows | None, fill: Callable[[int, memoryview], None]) -> torch.Tensor:
    """A tensor, or `rows` of it; `fill(begin, view)` writes the tensor's bytes from `begin` on into `view`."""
    count, columns = spec.matrix
    start, stop = rows or (0, count)
    row = spec.nbytes // count if count else 0
    raw = torch.empty((stop - start) * row, dtype=torch.uint8)
    if raw.numel():
        fill(start * row, memoryview(raw.numpy().data))
    shape = (stop - start, columns) if rows else spec.shape
    return raw.view(torch_dtype(spec.dtype)).reshape(shape)


class Files:
    """Files that are open as long as this lives; any thread may read."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def fill(self, path: Path, offset: int, view: memoryview) -> None:
        """The bytes of one of the files, from `offset` on, into a writable buffer."""
        file = self.file(path)
        while view:
            try:
                got = os.preadv(file, [view], offset)
            except OSError as error:
                raise failed(path, error.errno or 0) from error
            if not got:
                raise failed(path)
            view, offset = view[got:], offset + got

    def file(self, path: Path) -> int:
        """The descriptor of one of the files, which is open until the checkpoint goes."""
        if path in self._open:
            return self._open[path]
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._open[path]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


class StoredFiles(Files):
    """A `Checkpoint` of tensors whose places in files are known."""

    def __init__(self, extents: Mapping[str, Extent], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.extents = config, extents
        self.specs: Mapping[str, TensorSpec] = {name: extent.spec for name, extent in extents.items()}

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        extent = self.extents[name]
        return read_extent(extent.spec, rows, lambda at, view: self.fill(extent.path, extent.offset + at, view))

    def read_into(self, name: str, rows: Rows, buffer: memoryview) -> int:
        """The stored bytes of some rows into the beginning of a writable buffer of bytes; returns how many these are."""
        extent = self.extents[name]
        row = extent.spec.nbytes // max(1, extent.spec.matrix[0])
        nbytes = (rows[1] - rows[0]) * row
        self.fill(extent.path, extent.offset + rows[0] * row, buffer[:nbytes])
        return nbytes

    def ahead(self, name: str, start: int = 0, nbytes: int = AHEAD) -> None:
        """Tell the system that some bytes of a tensor will be read soon: it fetches what is not in its cache meanwhile."""
        extent = self.extents[name]
        nbytes = min(extent.spec.nbytes - start, nbytes)
        if nbytes > 0:
            ahead(self.file(extent.path), extent.offset + start, nbytes)
