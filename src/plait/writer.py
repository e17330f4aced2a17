"""Shards on disk: laid out first, filled in place under temporary names, renamed when whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import xxhash

from plait.blocks import SMALL, Disk, File, Flow, past_cache
from plait.compute import Stretch
from plait.errors import OutputError, reason
from plait.journal import Journal, Record, digest
from plait.kernels.fused import Buffer
from plait.layout import Shard
from plait.lazy import Tensor, torch
from plait.types import TensorSpec

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

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
    check_disk(target, nbytes)


def check_disk(out: Path, nbytes: int) -> None:
    """Refuse a place that may not be written to, or whose disk lacks `nbytes` (and 16 MB for small files)."""
    there = next(p for p in (out, *out.parents) if os.path.exists(p))
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"{there} cannot be written to",
            wanted="a folder that may be written to",
            do="choose another OUT, or change its permissions",
        )
    free = shutil.disk_usage(there).free
    if free < nbytes + 16_000_000:
        raise OutputError(
            "the disk is too full for the output",
            wanted=f"{nbytes / 1e9:.2f} GB",
            found=f"{free / 1e9:.2f} GB free at {there}",
            do="free some space, or choose an OUT on another disk",
        )


def check_files(count: int) -> None:
    """Let this process have so many files open at once, or refuse."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinity = resource.RLIM_INFINITY
    if soft == infinity or soft >= count:
        return
    if hard != infinity and hard < count:
        raise OutputError(
            "the merge has too many files for this system",
            wanted=f"{count} files open at once",
            found=f"a limit of {hard}",
            do="raise it (`ulimit -n`), or make fewer shards with a larger --out-shard-size",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Interrupts and polite kills wait until this is done."""
    came: list[tuple[int, FrameType | None]] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # they come to no other
        before = {n: how for n in (signal.SIGINT, signal.SIGTERM) if callable(how := signal.getsignal(n))}
    for number in before:
        signal.signal(number, lambda *given: came.append(given))
    try:
        yield
    finally:
        for number, how in before.items():
            signal.signal(number, how)
        for number, frame in came[:1]:
            before[number](number, frame)


class Writer:
    """Fills the shards of a layout; any thread may write any rows of a tensor, each once, in any order.

    `key` says what decides the bytes; with `resume`, tensors that a merge with the same key has finished, and whose bytes still
    have their hash, are `kept`. Left with an error, the shards stay for another `resume` if a tensor is finished for good;
    otherwise, and with `discard`, what was begun is removed. `block`: see `Disk`.
    """

    def __init__(
        self,
        out: Path,
        shards: Sequence[Shard],
        specs: Mapping[str, TensorSpec],
        key: Mapping[str, Any],
        *,
        resume: bool = False,
        force: bool = False,
        block: int | None = None,
    ) -> None:
        self.out, self._shards, self._specs = out, shards, specs
        self._key, self._resume, self._force = key, resume, force
        self._files: dict[str, File] = {}
        self._place: dict[str, tuple[File, int]] = {}
        self._strides = {name: spec.nbytes // (spec.matrix[0] or 1) for name, spec in specs.items()}
        self._begun: dict[str, Path] = {}  # shard -> where it lies until all are finished
        self._made: list[Path] = []
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()
        self._turns: dict[int, threading.Lock] = {}  # of a shard's descriptor
        self._disk = Disk(block)
        self._journal: Journal | None = None
        self.hashes: dict[str, str] = {}
        self.kept: frozenset[str] = frozenset()
        self.discard = False

    def __enter__(self) -> Writer:
        self._made = [p for p in (self.out, *self.out.parents) if not p.exists()]
        try:
            with undisturbed():  # else what an interrupt has just let be made is not known to be ours
                self.out.mkdir(parents=True, exist_ok=True)
                self._journal = Journal(self.out, self._key, self._resume, self._force, self._sync)
                for shard in self._shards:
                    self._begin(shard, self._journal.record)
            self.hashes = self._found(self._journal.record.tensors)
            self.kept = frozenset(self.hashes)
            self._journal.start()
        except OSError as error:
            self._abandon()
            raise _failed(self.out, error) from error
        except BaseException:
            self._abandon(mine=self._journal is not None)
            raise
        return self

    def _begin(self, shard: Shard, record: Record) -> None:
        path, final = self.out / (shard.filename + PARTIAL), self.out / shard.filename
        if record.whole and final.exists() and not path.exists():
            final.replace(path)  # it was renamed before the merge stopped
        anew = os.O_CREAT | (0 if record.tensors else os.O_TRUNC)
        file = os.open(path, os.O_RDWR | anew | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._begun[shard.filename], self._files[shard.filename] = path, (opened := File(file, past_cache(path)))
        self._turns[file] = threading.Lock()
        self._place.update({name: (opened, offset) for name, offset in shard.offsets.items()})
        if os.fstat(file).st_size > shard.nbytes:
            os.ftruncate(file, shard.nbytes)
        _reserve(file, shard.nbytes)
        opened.write(memoryview(shard.header), 0)

    def _found(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """The recorded tensors whose bytes are on the disk."""
        known = [name for name in recorded if name in self._place]
        with ThreadPoolExecutor(2) as pool:
            hashed = pool.map(self._digest, known)
            return {name: found for name, found in zip(known, hashed, strict=True) if found == recorded[name]}

    def _digest(self, name: str) -> str:
        file, offset = self._place[name]
        return digest(file.plain, offset, self._specs[name].nbytes)

    @property
    def past_cache(self) -> bool:
        """Whether whole blocks are written past the page cache, for which there is `room`."""
        return any(file.direct >= 0 for file in self._files.values())

    def room(self, name: str, row: int, nbytes: int) -> Buffer | None:
        """Where the rows of a tensor, from `row` on, may be put before they are written, which saves a copy; None: anywhere."""
        state = self._state(name)
        return state.flow.room(nbytes) if state.flow and state.at == row * self._strides[name] else None

    def write(self, name: str, row: int, piece: Tensor | memoryview | Stretch) -> None:
        """Put the rows of a tensor, from `row` on, in their place."""
        file, offset = self._place[name]
        at = row * self._strides[name]
        if isinstance(piece, Tensor):
            piece = memoryview(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        view = piece.view if isinstance(piece, Stretch) else piece
        state = self._state(name)
        follows = state.at == at  # else a thread has overtaken another
        try:
            if state.flow and follows:
                state.flow.add(view)
            else:
                with self._turns[file.plain]:  # systems let one thread at a time write a file, and have the others spin
                    if isinstance(piece, Stretch):
                        _copy(piece, file, offset + at)
                    else:
                        file.write(view.cast("B"), offset + at)
            for error in (self._disk.error, self._journal.error if self._journal else None):
                if error:
                    raise error
            self._account(name, state, view, follows)
        except OSError as error:
            raise _failed(self.out, error) from error

    def _state(self, name: str) -> _State:
        with self._lock:
            if name not in self._states:
                (file, offset), nbytes = self._place[name], self._specs[name].nbytes
                flows = file.direct >= 0 and nbytes >= SMALL
                self._states[name] = state = _State()
                state.flow = Flow(self._disk, file, offset, lambda: self._done(name, state)) if flows else None
            return self._states[name]

    def _account(self, name: str, state: _State, data: memoryview, follows: bool) -> None:
        """Hash what was handed over, in order as it comes, or from the disk once it is all there."""
        if follows:
            state.hashed.update(data)
        with self._lock:
            state.at += data.nbytes if follows else 0
            state.done += data.nbytes
            if state.done < self._specs[name].nbytes:
                return
            del self._states[name]
        if state.flow:
            state.flow.end()
        else:
            self._done(name, state)

    def _done(self, name: str, state: _State) -> None:
        """All of a tensor was written."""
        hashed = state.hashed.hexdigest() if state.at == self._specs[name].nbytes else self._digest(name)
        self.hashes[name] = hashed
        if self._journal:
            self._journal.done(name, hashed)

    def _sync(self) -> None:
        for file in self._files.values():
            os.fdatasync(file.plain) if hasattr(os, "fdatasync") else os.fsync(file.plain)

    def finish(self, before: Callable[[], None] = lambda: None) -> list[Path]:
        """Make the shards durable, do `before`, remove stale weights, and give the new ones their names. Returns their paths.

        `before` removes what would be wrong beside the new weights. From here on only `close` ends the merge.
        """
        assert self._journal
        self._disk.finish()
        try:
            if self._disk.error:
                raise self._disk.error
            self.hashes |= {name: self._digest(name) for name in self._place if name not in self.hashes}  # empty ones
            for file in self._files.values():
                os.fsync(file.plain)
            self._journal.whole()
            while self._files:
                self._files.popitem()[1].close()
            before()
            for stale in {path for pattern in WEIGHTS for path in self.out.glob(pattern)} - {*self._begun.values()}:
                stale.unlink()
            for name, path in self._begun.items():
                self._begun[name] = path.replace(self.out / name)
            fsync_folder(self.out)
        except OSError as error:
            raise _failed(self.out, error) from error
        return list(self._begun.values())

    def close(self, files: Iterable[Path]) -> None:
        """Make the other files durable, and end the journal: the model directory is whole."""
        assert self._journal
        try:
            for path in files:
                fsync(path)
            fsync_folder(self.out)
            self._journal.close(remove=True)
            self._journal = None
            fsync_folder(self.out)
        except OSError as error:
            raise _failed(self.out, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal:
            self._abandon()

    def _abandon(self, mine: bool = True) -> None:
        """Leave what can be taken up again; remove what cannot, and folders that were made for it."""
        self._disk.finish()
        journal, self._journal = self._journal, None
        if journal:
            journal.stop()
        keep = journal is not None and journal.lines > 0 and not self.discard
        if journal and keep:
            with suppress(OSError):
                journal.flush()
        for file in self._files.values():
            file.close()
        if not keep:
            for path in self._begun.values():
                path.unlink(missing_ok=True)
        if journal:
            journal.close(remove=not keep)
        self._files, self._begun = {}, {}
        for folder in self._made if mine else ():
            try:
                folder.rmdir()
            except OSError:  # not empty, or never made: it is not ours to remove
                break


@dataclass
class _State:
    """How far a tensor is written: hashed up to `at`, `done` bytes in all."""

    hashed: Any = field(default_factory=xxhash.xxh3_128)
    at: int = 0
    done: int = 0
    flow: Flow | None = None


def fsync(path: Path) -> None:
    """Make a file durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name == "posix":
        with suppress(OSError):  # some network file systems refuse
            fsync(path)


def reserved(out: Path, shards: Iterable[Shard]) -> int:
    """Bytes of disk that the shards of a merge which stopped already have."""
    paths = (out / (shard.filename + PARTIAL) for shard in shards)
    return sum(os.stat(path).st_blocks * 512 for path in paths if path.exists())


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


def _copy(piece: Stretch, file: File, offset: int) -> None:
    """Let the system copy from file to file: file systems that can share the blocks do. Where it cannot, write the bytes."""
    done = 0
    while done < piece.nbytes and hasattr(os, "copy_file_range"):
        try:
            got = os.copy_file_range(piece.file, file.plain, piece.nbytes - done, piece.offset + done, offset + done)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
                raise
            break
        if not got:  # the input ends here: it changed, which is told at the end
            break
        done += got
    if done < piece.nbytes:
        file.write(piece.view[done:], offset + done)


def _failed(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing to {out} failed",
        wanted="a disk that takes the output",
        found=reason(error),
        do="free some space, or choose another OUT; the inputs are untouched",
    )
