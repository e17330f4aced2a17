"""Bytes on their way to a disk: gathered into blocks, which threads of their own write past the page cache.

A merged model is larger than anything else that its machine holds; copied into the page cache it would push out what is used,
cost the processor as much as the arithmetic, and still have to go to the disk before the merge may end. So whole pages of a file
go there straight from the memory that they were computed in (`O_DIRECT`), while the next are computed. What does not fill a page
goes through the cache; no page goes both ways.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from plait.kernels.fused import Buffer, within

PAGE = 4096  # bytes; offsets, addresses and lengths that every such file takes are multiples of it
BLOCK = 1 << 23  # bytes that are written at once, mostly: each wakes threads, which costs a virtual machine much
THREADS = 2  # that write
WAITING = 4  # blocks that are written or wait for it; whoever has another to write waits
SMALL = 1 << 19  # bytes of a tensor that is not worth a block


@dataclass
class File:
    """A file that is being written: a descriptor, and one past the page cache where that can be (-1: it cannot)."""

    plain: int
    direct: int = -1

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes through the page cache."""
        while view:
            done = os.pwrite(self.plain, view, offset)
            view, offset = view[done:], offset + done

    def write_pages(self, view: memoryview, offset: int) -> None:
        """Write whole pages past the cache; what the system will not take like this goes through it."""
        while view and self.direct >= 0:
            try:
                done = os.pwrite(self.direct, view, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
            view, offset = view[done:], offset + done
        self.write(view, offset)

    def close(self) -> None:
        for descriptor in (self.direct, self.plain):
            if descriptor >= 0:
                os.close(descriptor)
        self.plain = self.direct = -1


def past_cache(path: Path) -> int:
    """A descriptor that writes to a file past the page cache; -1 where the system has none, or the file is on no disk of its own.

    File systems of networks, of memory, and those that check sums of what they are given, have no device number of a disk.
    """
    flag = getattr(os, "O_DIRECT", 0)
    if flag and os.major(os.stat(path).st_dev):
        with suppress(OSError):
            return os.open(path, os.O_WRONLY | flag | os.O_CLOEXEC)
    return -1


class Disk:
    """The threads that write, and the memory of blocks. `error`: the first thing that went wrong; nothing is written after it.

    `block`: bytes of a block, where memory is scarce; never more than BLOCK.
    """

    def __init__(self, block: int | None = None) -> None:
        self.block = min(BLOCK, block or BLOCK)
        self.error: Exception | None = None
        self._pool = ThreadPoolExecutor(THREADS, "plait-disk")
        self._turns = threading.BoundedSemaphore(WAITING)
        self._free: list[mmap] = []

    def take(self, nbytes: int) -> mmap:
        """Memory for a block, of at least so many bytes."""
        with suppress(IndexError):
            while len(memory := self._free.pop()) < nbytes:
                pass
            return memory
        return mmap(-1, nbytes)

    def give(self, memory: mmap) -> None:
        self._free.append(memory)

    def submit(self, memory: mmap, write: Callable[[], None]) -> None:
        """Have a block written, and its memory taken back; waits while too many wait."""
        self._turns.acquire()
        self._pool.submit(self._work, memory, write)

    def _work(self, memory: mmap, write: Callable[[], None]) -> None:
        try:
            if self.error is None:
                write()
        except Exception as error:  # told by the thread that writes next
            self.error = self.error or error
        finally:
            self.give(memory)
            self._turns.release()

    def finish(self) -> None:
        """Wait until all is written, or was left; no more may come."""
        self._pool.shutdown()
        self._free.clear()


class Flow:
    """A tensor's bytes, in order, on their way to their place in a file. `landed` is called when the last are there."""

    def __init__(self, disk: Disk, file: File, offset: int, landed: Callable[[], None]) -> None:
        self._disk, self._file, self._landed = disk, file, landed
        self._memory: mmap | None = None
        self._begin = offset - offset % PAGE  # of the block, in the file
        self._skip = offset % PAGE  # its first bytes, which are another tensor's
        self._filled = self._skip
        self._carried = bytes(self._skip)  # what the next block begins with
        self._waiting, self._ended, self._lock = 0, False, threading.Lock()

    def room(self, nbytes: int) -> Buffer:
        """Where the next bytes may be put before they are added, so that nobody has to copy them."""
        if self._memory is not None and self._filled + nbytes > len(self._memory):
            if self._filled >= PAGE:
                self._send()
            else:
                self._carried = self._memory[: self._filled]
                self._disk.give(self._memory)
                self._memory = None
        if self._memory is None:
            whole = max(self._filled + nbytes, self._disk.block + PAGE)
            self._memory = self._disk.take(whole + -whole % PAGE)
            self._memory[: self._filled] = self._carried
        return within(self._memory, self._filled, nbytes)

    def add(self, view: memoryview) -> None:
        """The next bytes, which lie in the room that was asked for, or elsewhere."""
        if self._memory is not None and view.obj is self._memory:
            self._filled += view.nbytes
            return
        view = view.cast("B")
        while view:
            part, view = view[: self._disk.block], view[self._disk.block :]
            self.room(part.nbytes).view[:] = part
            self._filled += part.nbytes

    def end(self) -> None:
        """There will be no more bytes."""
        if self._memory is not None:
            self._send(end=True)
        else:
            self._landed()

    def _send(self, end: bool = False) -> None:
        """Have what there is written: whole pages, and at the ends of the tensor what fills none."""
        memory, begin, skip, filled = self._memory, self._begin, self._skip, self._filled
        assert memory is not None
        view, first, last = memoryview(memory), PAGE if skip else 0, filled - filled % PAGE

        def write() -> None:
            if skip:
                self._file.write(view[skip : min(filled, PAGE)], begin + skip)
            self._file.write_pages(view[first:last], begin + first)
            if end:
                self._file.write(view[max(first, last) : filled], begin + max(first, last))
            with self._lock:
                self._waiting -= 1
                landed = self._ended and not self._waiting
            if landed:
                self._landed()

        self._memory, self._carried = None, memory[last:filled]
        self._begin, self._skip, self._filled = begin + last, 0, filled - last
        with self._lock:
            self._waiting += 1
            self._ended = end
        self._disk.submit(memory, write)
