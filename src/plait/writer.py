"""Shards on disk: laid out first, filled in place under temporary names, renamed when whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from plait.errors import OutputError
from plait.layout import Shard
from plait.lazy import Tensor, torch
from plait.types import TensorSpec

PARTIAL = ".partial"
#: weights that an older run may have left and that a loader would take for the new ones
WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    f"*{PARTIAL}",
)


def check_output(out: Path, nbytes: int, inputs: Iterable[Path], force: bool = False) -> None:
    """Refuse an OUT that an input lies in, that holds something (unless `force`), or whose disk lacks `nbytes`.

    `inputs`: files and folders, which may be symbolic links.
    """
    target = out.resolve()
    if target in {path.resolve().parent if path.is_file() else path.resolve() for path in inputs}:
        raise OutputError(
            "the output would overwrite an input", wanted="a new directory", found=str(out), do="choose another OUT"
        )
    # os.path, since pathlib raises where a parent may not be looked into
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError("OUT is a file", wanted="a directory", found=str(out), do="choose another OUT")
    if os.path.isdir(out) and not force and (held := sorted(os.listdir(out))):
        raise OutputError(
            f"{out} is not empty",
            wanted="a new or empty directory",
            found=", ".join(held[:4]) + (" …" if len(held) > 4 else ""),
            do="choose another OUT, or pass --force to replace the model in it",
        )
    there = next(p for p in (target, *target.parents) if os.path.exists(p))
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} cannot be written to", do="choose another OUT, or change its permissions")
    free = shutil.disk_usage(there).free
    if free < nbytes + 16_000_000:
        raise OutputError(
            "the disk is too full for the output",
            wanted=f"{nbytes / 1e9:.2f} GB",
            found=f"{free / 1e9:.2f} GB free at {there}",
            do="free some space, or choose an OUT on another disk",
        )


class Writer:
    """Fills the shards of a layout; any thread may write any rows, in any order.

    Leaving the context without `finish` removes what was begun.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], specs: Mapping[str, TensorSpec]) -> None:
        self.out, self._shards, self._specs = out, shards, specs
        self._files: dict[str, int] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._begun: dict[str, Path] = {}  # shard -> where it lies until all are finished
        self._made: list[Path] = []

    def __enter__(self) -> Writer:
        self._made = [p for p in (self.out, *self.out.parents) if not p.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for shard in self._shards:
                path = self._begun[shard.filename] = self.out / (shard.filename + PARTIAL)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
                self._files[shard.filename] = file
                _reserve(file, shard.nbytes)
                _write(file, memoryview(shard.header), 0)
                self._place.update({name: (file, offset) for name, offset in shard.offsets.items()})
        except OSError as error:
            self._abandon()
            raise _failed(self.out, error) from error
        except BaseException:  # a signal
            self._abandon()
            raise
        return self

    def write(self, name: str, row: int, piece: Tensor | memoryview) -> None:
        """Put the rows of a tensor, from `row` on, in their place."""
        file, offset = self._place[name]
        count, _ = self._specs[name].matrix
        stride = self._specs[name].nbytes // count if count else 0
        if isinstance(piece, Tensor):
            piece = memoryview(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        try:
            _write(file, piece, offset + row * stride)
        except OSError as error:
            raise _failed(self.out, error) from error

    def finish(self) -> list[Path]:
        """Make the shards durable, remove stale weights, and give the new ones their names. Returns their paths."""
        try:
            for name in list(self._files):
                os.fsync(self._files[name])
                os.close(self._files.pop(name))
            for stale in {path for pattern in WEIGHTS for path in self.out.glob(pattern)} - {*self._begun.values()}:
                stale.unlink()
            for name, path in self._begun.items():
                self._begun[name] = path.replace(self.out / name)
        except OSError as error:
            raise _failed(self.out, error) from error
        files, self._begun = list(self._begun.values()), {}
        return files

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun:
            self._abandon()

    def _abandon(self) -> None:
        for file in self._files.values():
            os.close(file)
        for path in self._begun.values():
            path.unlink(missing_ok=True)
        self._files, self._begun = {}, {}
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # not empty, or never made: it is not ours to remove
                break


def _reserve(file: int, nbytes: int) -> None:
    """Take the disk space now, so that a full disk is found before the work."""
    if hasattr(os, "posix_fallocate") and nbytes:
        try:
            os.posix_fallocate(file, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(file, nbytes)


def _write(file: int, view: memoryview, offset: int) -> None:
    view = view.cast("B")
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


def _failed(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing to {out} failed",
        wanted="a disk that takes the output",
        found=error.strerror or str(error),
        do="free some space, or choose another OUT; the inputs are untouched, and what was begun has been removed",
    )
