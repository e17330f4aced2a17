"""Bytes get to their place in a file, past the page cache or through it, and nothing else in the file changes."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make
import plait
import plait.blocks as blocks
from plait.blocks import PAGE, WAITING, Disk, File, Flow, past_cache
from plait.errors import OutputError


@pytest.fixture
def where(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"")
    file = past_cache(tmp_path / "file")
    if file < 0:
        pytest.skip("this folder is on no disk of its own")
    os.close(file)
    return tmp_path / "file"


def opened(path: Path, past: bool) -> File:
    return File(os.open(path, os.O_RDWR), past_cache(path) if past else -1)


@given(
    offset=st.integers(0, 3 * PAGE),
    pieces=st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=12),
    own=st.lists(st.booleans(), min_size=12, max_size=12),
    past=st.booleans(),
    block=st.sampled_from([1, PAGE, 3 * PAGE]),
)
@settings(deadline=None, max_examples=150)
def test_bytes_in_place(offset: int, pieces: list[int], own: list[bool], past: bool, block: int) -> None:
    """Pieces of any size from any offset on, put into the room that they are given or copied there."""
    noise = np.random.default_rng(sum(pieces))
    before = noise.integers(0, 256, offset + sum(pieces) + 2 * PAGE + 5, np.uint8).tobytes()
    data = noise.integers(0, 256, sum(pieces), np.uint8).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(before)
        file, disk, landed = opened(path, past), Disk(block), list[bytes]()
        flow = Flow(disk, file, offset, lambda: landed.append(path.read_bytes()))
        at = 0
        for size, lent in zip(pieces, own, strict=False):
            view = memoryview(data)[at : at + size]
            if lent:
                room = flow.room(size).view
                room[:] = view
                view = room
            flow.add(view)
            at += size
        flow.end()
        disk.finish()
        file.close()
    assert disk.error is None
    assert landed == [before[:offset] + data + before[offset + len(data) :]]


def test_neighbours_at_once(where: Path) -> None:
    """Tensors that share pages are written by several threads at once, and each byte gets there."""
    noise = np.random.default_rng(0)
    sizes = noise.integers(1, 5 * PAGE, 200).tolist()
    data = noise.integers(0, 256, sum(sizes), np.uint8).tobytes()
    os.truncate(where, len(data))
    file, disk = opened(where, past=True), Disk()
    offsets = np.cumsum([0, *sizes])

    def work(first: int) -> None:
        for i in range(first, len(sizes), 4):
            view = memoryview(data)[offsets[i] : offsets[i + 1]]
            flow = Flow(disk, file, int(offsets[i]), lambda: None)
            for at in range(0, len(view), 1000):
                flow.add(view[at : at + 1000])
            flow.end()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.finish()
    os.fsync(file.plain)
    file.close()
    assert disk.error is None
    assert where.read_bytes() == data


def test_a_system_that_refuses(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system will not take past its cache goes through it."""
    real, refused = os.pwrite, []

    def picky(file: int, view: memoryview, offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT and offset >= 4 * PAGE:
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, view, offset)

    monkeypatch.setattr(os, "pwrite", picky)
    data = os.urandom(10 * PAGE)
    file, disk = opened(where, past=True), Disk(PAGE)
    flow = Flow(disk, file, 0, lambda: None)
    flow.add(memoryview(data))
    flow.end()
    disk.finish()
    file.close()
    assert refused
    assert where.read_bytes() == data


def test_no_more_than_a_few_blocks(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who computes waits for a disk that is slower."""
    real, go = os.pwrite, threading.Event()
    monkeypatch.setattr(os, "pwrite", lambda *given: (go.wait(), real(*given))[1])
    file, disk, added = opened(where, past=True), Disk(PAGE), list[int]()

    def work() -> None:
        flow = Flow(disk, file, 0, lambda: None)
        for number in range(20):
            flow.add(memoryview(bytes(PAGE)))
            added.append(number)
        flow.end()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert len(added) <= 2 * (WAITING + 1)  # a block holds a page more than it must
    go.set()
    thread.join()
    disk.finish()
    file.close()
    assert where.stat().st_size == 20 * PAGE


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, object]:
    """Of models with tensors of 1 MB."""
    return make.recipe("linear", *(make.model(tmp_path / n, i, hidden=512, vocab=1100) for i, n in enumerate("ab")))


def test_a_merge_writes_past_the_cache(recipe: dict[str, object], where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the ends of large tensors goes there whole blocks at a time; the shards are those that a cache would give."""
    past, real = list[int](), os.pwrite

    def spy(file: int, view: memoryview, offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            past.append(len(view))
        return real(file, view, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 18)
    saved = plait.merge(recipe).save(where.parent / "out")
    large = sum(s.nbytes for s in plait.merge(recipe).specs.values() if s.nbytes >= blocks.SMALL)
    assert large > 8 * blocks.BLOCK
    assert large - 2 * PAGE * saved.tensors <= sum(past) <= large
    monkeypatch.setattr("plait.writer.past_cache", lambda path: -1)
    monkeypatch.setattr(os, "pwrite", lambda *given: real(*given))
    assert make.hashes(plait.merge(recipe).save(where.parent / "x").out) == make.hashes(saved.out)


def test_a_disk_that_fills_up_past_the_cache(
    recipe: dict[str, object], where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that cannot be written, of which another thread hears, ends the merge in one message; it goes on later."""
    merge, out = plait.merge(recipe), where.parent / "out"
    expected = make.hashes(merge.save(where.parent / "x").out)
    with monkeypatch.context() as patch:
        patch.setattr("plait.writer.past_cache", lambda path: os.open("/dev/full", os.O_WRONLY))
        with pytest.raises(OutputError, match="No space left on device") as caught:
            merge.save(out)
    assert caught.value.wanted
    assert caught.value.do
    assert make.hashes(merge.save(out, resume=True).out) == expected
