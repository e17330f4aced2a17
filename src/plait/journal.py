"""The journal of a merge: what is finished, so that a merge that stopped can go on; and the lock of the folder.

`plait_journal.jsonl` lies in OUT while a merge writes there. Its first line says what decides the bytes (recipe, plan, inputs,
versions), then each finished tensor has a line with the hash of its bytes. A line is written only after the bytes it speaks of
are on the disk (`fdatasync`), so that a line never promises more than there is, whatever stops the machine. The last line says
that all shards are whole; the file goes when the model directory is.

The open file is locked with `flock`, which ends with the process: two merges never write into one folder.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from plait.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

NAME = "plait_journal.jsonl"
HASH = "xxh3_128"
#: seconds between two writes of the journal, and so the work that a kill can cost
INTERVAL = 1.0
FINITE = "finite"  # what a key says of the values where they are checked
_FORM = 1
_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class Record:
    """What a journal says: for what merge it is, which process wrote it last, what is finished."""

    key: Mapping[str, Any] = field(default_factory=dict)
    pid: int | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)  # name -> hash of its bytes
    whole: bool = False  # all shards are whole: they are renamed, or about to be
    nbytes: int = 0  # of the file, up to the last line that is whole


def read(path: Path) -> Record | None:
    """The journal at `path`, up to the first line that is torn; None without one that can be read."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    key: Mapping[str, Any] = {}
    pid, tensors, whole, nbytes = None, {}, False, 0
    for line in raw.splitlines(keepends=True):
        try:
            entry = json.loads(line)
            if not line.endswith(b"\n") or (nbytes == 0 and entry.get("plait_journal") != _FORM):
                break
            key = entry.get("for", key)
            pid = entry.get("pid", pid)
            whole = whole or entry.get("whole", False)
            if "tensor" in entry:
                tensors[entry["tensor"]] = entry[HASH]
        except (ValueError, AttributeError, KeyError):
            break
        nbytes += len(line)
    return Record(key, pid, tensors, whole, nbytes)


def refuse_leftover(out: Path, total: int, force: bool, resume: bool) -> None:
    """Raise `OutputError` for a folder that another merge writes to now, or one that a merge was interrupted in."""
    path = out / NAME
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:  # none, or a name that is something else: the writer will say so
        return
    try:
        _lock(file, path)
    finally:
        os.close(file)
    if not (force or resume):
        record = read(path) or Record()
        raise OutputError(
            f"{out} holds a merge that was interrupted",
            wanted="a new or empty directory",
            found=f"{len(record.tensors)} of {total} tensors finished",
            do="pass --resume to go on where it stopped, or --force to start anew",
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two keys, in words."""
    found = []
    for part in dict.fromkeys([*then, *now]):
        old, new = then.get(part), now.get(part)
        pairs = [(part, old, new)]
        if isinstance(old, dict) and isinstance(new, dict):
            pairs = [(f"{part}: {n}", old.get(n), new.get(n)) for n in {**old, **new}]
        for name, was, now_is in pairs:
            if was != now_is:
                short = len(str(was)) < 24 and len(str(now_is)) < 24
                found.append(name + (f" (was {was}, is {now_is})" if short else ""))
    return found


def _as_now(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier key; values that were checked serve a merge that lets any through."""
    return {**then, "values": now["values"]} if then.get("values") == FINITE and "values" in now else dict(then)


def digest(file: int, offset: int, nbytes: int) -> str:
    """The hash of these bytes of a file; of fewer where it ends earlier."""
    state = xxhash.xxh3_128()
    while nbytes > 0 and (block := os.pread(file, min(nbytes, _BLOCK), offset)):
        state.update(block)
        offset, nbytes = offset + len(block), nbytes - len(block)
    return state.hexdigest()


class Journal:
    """The journal of a merge that runs. `done` may be called from any thread; a thread of its own writes.

    `sync` makes everything that was written to the shards so far durable; `fits` says whether an old record was taken up.
    """

    def __init__(self, out: Path, key: Mapping[str, Any], resume: bool, force: bool, sync: Callable[[], None]) -> None:
        self.path = out / NAME
        self._file = _open(self.path)
        self._sync, self._pending = sync, list[tuple[str, str]]()
        self._stopped, self._flushing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="plait-journal", daemon=True)
        self.error: OSError | None = None
        found = read(self.path) if resume else None
        changed = changes(_as_now(found.key, key), key) if found and found.key else []
        if changed and not force:
            os.close(self._file)
            raise OutputError(
                f"the merge that was interrupted in {out} was another one",
                wanted="the recipe, models, options and versions that it began with",
                found="changed: " + "; ".join(changed[:6]),
                do="undo the change and resume, or pass --force to start anew",
            )
        self.record = found if found and found.key and not changed else Record()
        os.ftruncate(self._file, self.record.nbytes)
        os.lseek(self._file, 0, os.SEEK_END)
        self.lines = len(self.record.tensors)  # finished tensors that the disk knows of
        try:
            if not self.record.key:
                self._write({"plait_journal": _FORM, "for": key})
            elif self.record.key != key:
                self._write({"for": key})
            self._write({"pid": os.getpid()})
        except OSError:
            self.close(remove=not self.lines)
            raise

    def start(self) -> None:
        self._thread.start()

    def done(self, tensor: str, hashed: str) -> None:
        """A tensor is written; its line follows within `INTERVAL` seconds."""
        self._pending.append((tensor, hashed))

    def flush(self) -> None:
        """Make durable what was written, and then the lines that say so."""
        with self._flushing:
            count = len(self._pending)
            if count:
                self._sync()
                self._write(*({"tensor": name, HASH: hashed} for name, hashed in self._pending[:count]))
                del self._pending[:count]
                self.lines += count

    def whole(self) -> None:
        """Say that all shards are whole."""
        self.flush()
        self._write({"whole": True})

    def stop(self) -> None:
        """Write no more by itself."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self, remove: bool) -> None:
        """Stop; `remove` the file while it is still locked, or leave it for a merge that goes on."""
        self.stop()
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _work(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.flush()
            except OSError as error:  # told by the thread that writes next
                self.error = error
                return

    def _write(self, *entries: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode()
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)


def _open(path: Path) -> int:
    """The journal's file, made if need be, locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            _lock(file, path)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its owner removed it between our open and our lock


def _lock(file: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        record = read(path)
        raise OutputError(
            f"another merge is writing to {path.parent}",
            wanted="one merge at a time for each OUT",
            found=f"process {record.pid}" if record and record.pid else "a process that has just begun",
            do="wait until it is done, or choose another OUT",
        ) from error
    except OSError:  # a file system without locks
        return
