"""The system is told what will be read, all that it has not, in its order, and never too far before it is read."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import make
import plait
from plait.plan import Plan
from plait.run import Ahead, run


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr("plait.run.AHEAD", 4096)
    monkeypatch.setattr("plait.checkpoint.ahead.cached", lambda file, offset: False)
    models = [make.model(tmp_path / name, i, hidden=64, vocab=300) for i, name in enumerate("ab")]
    return plait.merge(make.recipe("ties", models[1], base=models[0], parameters={"weight": 1, "density": 0.5})).plan


def test_all_that_is_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte once, a step after the other, both inputs side by side."""
    told = list[tuple[int, int, int]]()
    monkeypatch.setattr(os, "posix_fadvise", lambda file, at, nbytes, _: told.append((file, at, nbytes)))
    monkeypatch.setattr(Ahead, "LIMIT", 20_000)
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
    monkeypatch.setattr(os, "posix_fadvise", lambda file, at, nbytes, _: told.append(nbytes))
    monkeypatch.setattr(Ahead, "LIMIT", 20_000)
    with Ahead(plan, plan.steps) as fetched:
        time.sleep(0.2)
        before = sum(told)
        fetched.used(10_000)
        time.sleep(0.2)
        assert 20_000 <= before < 20_000 + 2 * 4096
        assert before < sum(told) <= before + 10_000 + 2 * 4096
    assert not [thread for thread in threading.enumerate() if thread.name == "plait-ahead"]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux says what is in the page cache")
def test_what_is_in_the_page_cache(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told of what it has already: of files just written nothing, of one put out of the cache all of it."""
    monkeypatch.undo()
    told = list[int]()
    tell = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda file, at, nbytes, _: told.append(file))
    run(plan, lambda name, row, piece: None)
    assert told == []
    opened = plan.models[plan.steps[0].inputs[0].model].opened.checkpoint
    file = opened.file(next(iter(opened.extents.values())).path)
    os.fsync(file)
    tell(file, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        pass
    else:
        pytest.skip("this file system keeps what it was told to drop")
    run(plan, lambda name, row, piece: None)
    assert set(told) == {file}
