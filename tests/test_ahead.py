"""The system is told what will be read, all that it has not, in its order, and never too far before it is read."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest

import make
import plait
from plait.checkpoint.ahead import ahead, cached
from plait.checkpoint.files import StoredFiles
from plait.kernels import library
from plait.plan import Plan
from plait.run import Ahead, run


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr("plait.run.AHEAD", 4096)
    models = [make.model(tmp_path / name, i, hidden=64, vocab=300) for i, name in enumerate("ab")]
    return plait.merge(make.recipe("ties", models[1], base=models[0], parameters={"weight": 1, "density": 0.5})).plan


def test_all_that_is_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte once, a step after the other, both inputs side by side."""
    told = list[tuple[int, int, int]]()
    monkeypatch.setattr("plait.checkpoint.files.ahead", lambda *asked: told.append(asked))
    monkeypatch.setattr("plait.run.LIMIT", 20_000)
    run(plan, lambda name, row, piece: time.sleep(0.001), threads=2)
    spans = [
        (opened.file(extent.path), extent.offset, extent.offset + extent.spec.nbytes)
        for step in plan.steps
        for source in step.sources()
        for opened in [plan.models[source.model].opened.checkpoint]
        for extent in [opened.extents[source.name]]
    ]
    covered = [(file, at, at + nbytes) for file, at, nbytes in told]
    assert sum(stop - at for _, at, stop in covered) == sum(stop - at for _, at, stop in spans)
    where = [
        next(i for i, (f, a, b) in enumerate(spans) if f == file and a <= at and stop <= b)
        for file, at, stop in covered
    ]
    assert [number // 2 for number in where] == sorted(number // 2 for number in where)
    assert max(stop - at for _, at, stop in covered) == 4096


def test_no_further_than_the_limit(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for what it fetched to be used, and ends when the work does."""
    told = list[int]()
    monkeypatch.setattr("plait.checkpoint.files.ahead", lambda file, at, nbytes: told.append(nbytes))
    monkeypatch.setattr("plait.run.LIMIT", 20_000)
    with Ahead(plan, plan.steps) as fetched:
        time.sleep(0.2)
        before = sum(told)
        fetched.used(10_000)
        time.sleep(0.2)
        assert 20_000 <= before < 20_000 + 2 * 4096
        assert before < sum(told) <= before + 10_000 + 2 * 4096
    assert not [thread for thread in threading.enumerate() if thread.name == "plait-ahead"]


SIZE = 80 << 20
MORE = 16 << 20  # bytes that may come unasked


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[int]:
    """A file of 80 MB of which the page cache has nothing."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    drop(file)
    yield file
    os.close(file)


def drop(file: int) -> None:
    if library() is None or sys.platform != "linux":
        pytest.skip("only Linux says what is in the page cache, and only to the kernels")
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(file, 0) is not False:
        pytest.skip("this file system keeps what it was told to drop")


def pages(file: int) -> list[bool | None]:
    return [cached(file, at) for at in range(0, os.fstat(file).st_size, PAGESIZE)]


@pytest.mark.parametrize("step", [38 << 20, 4 << 20, 1 << 20, 100_000])
@pytest.mark.parametrize("begin", [PAGESIZE, 5 * PAGESIZE + 17])
def test_all_of_it_comes(dropped: int, begin: int, step: int) -> None:
    """Also where it is more than the system ever reads ahead: it would leave out the rest without a word. And little else."""
    end = begin + (38 << 20)
    for at in range(begin, end, step):
        ahead(dropped, at, min(step, end - at))
    first, last, until = begin // PAGESIZE, (end - 1) // PAGESIZE + 1, time.monotonic() + 60
    while not all((found := pages(dropped))[first:last]) and time.monotonic() < until:
        time.sleep(0.01)
    assert all(found[first:last])
    assert not any(found[:first])
    assert not any(found[last + MORE // PAGESIZE :])


def test_asking_brings_nothing(dropped: int) -> None:
    """A page that came by itself would cut in two what is read ahead later."""
    asked = [cached(dropped, at) for at in range(0, 40 << 20, 5 << 20)]
    time.sleep(0.1)
    assert asked == [False] * 8
    assert not any(pages(dropped))
    assert cached(dropped, SIZE + (1 << 20)) is False  # beyond its end
    os.pread(dropped, 1, 7 << 20)
    assert cached(dropped, 7 << 20) is True


def test_what_is_there_is_not_asked_for(dropped: int) -> None:
    """The system would look at every page: both ends are looked at instead, and how far it has read on beyond them."""
    nbytes = 32 << 20
    for at in (0, nbytes - PAGESIZE, nbytes + MORE):
        ahead(dropped, at, PAGESIZE)
    until = time.monotonic() + 60
    while sum(map(bool, pages(dropped))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    ahead(dropped, 0, nbytes)
    time.sleep(0.1)
    assert sum(map(bool, pages(dropped))) == 3


def test_files_of_others(dropped: int) -> None:
    """Of these the system says that it has all, be it true or not; so they are fetched whatever it says."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            assert cached(dropped, 0) is None
            ahead(dropped, 0, PAGESIZE)
        finally:
            os.seteuid(0)
        until = time.monotonic() + 60
        while not cached(dropped, 0) and time.monotonic() < until:
            time.sleep(0.01)
        assert cached(dropped, 0) is True
    else:
        with open("/etc/passwd") as file:
            assert cached(file.fileno(), 0) is None


def test_without_kernels(dropped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[int, int, int, int]]()
    monkeypatch.setattr("plait.kernels.library", lambda: None)
    monkeypatch.setattr(os, "posix_fadvise", lambda *asked: told.append(asked))
    assert cached(dropped, 0) is None
    ahead(dropped, 0, 1 << 20)
    assert told == [(dropped, 0, 1 << 20, os.POSIX_FADV_WILLNEED)]


def test_a_merge_fetches_its_inputs(plan: Plan) -> None:
    """From a disk: every page of every weight."""
    files = {
        opened.file(extent.path)
        for model in plan.models
        if isinstance(opened := model.opened.checkpoint, StoredFiles)
        for extent in opened.extents.values()
    }
    for file in files:
        os.fsync(file)
        drop(file)
    with Ahead(plan, plan.steps):
        until = time.monotonic() + 60
        while not all(page for file in files for page in pages(file)[1:]) and time.monotonic() < until:
            time.sleep(0.01)
    assert all(page for file in files for page in pages(file)[1:])
