"""Stop a real merge at many points over its run, go on with --resume, and compare every file with an undisturbed run.

    python tests/interrupt.py FOLDER [POINTS]

Each merge is the command line in a forked process of its own, so that a start costs nothing. A point is a call of the system that
opens, writes, syncs, renames or removes a file: the process is sent a real signal just before it, or just after. Points are
spread evenly over all such calls of a run; the last ones, in which the files get their names, are taken one by one. Prints JSON:
how many calls there are, how often each signal hit, how many tensors were taken up again, and what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
import plait
import plait.blocks
import plait.journal
from plait.cli import main

plait.journal.INTERVAL = 0.001  # seconds: a merge of a blink is as long as an hour is with the usual one
plait.blocks.SMALL, plait.blocks.BLOCK = (
    1,
    2 * plait.blocks.PAGE,
)  # and its small tensors go to the disk as large ones do
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CALLS = ("open", "pwrite", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "mkdir", "posix_fallocate")


def start(folder: Path, *options: str, stop: tuple[int, int, bool] | None = None) -> int:
    """Fork a process that merges into `folder/out`; its output goes to `folder/said`, the number of its calls to `folder/calls`.

    `stop`: (signal, number of the call with which the process gets it, whether after it).
    """
    if pid := os.fork():
        return pid
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = [
        "plait",
        "merge",
        str(folder / "recipe.yml"),
        str(folder / "out"),
        "--out-shard-size",
        "100KB",
        *options,
    ]
    code, lock, count = 1, threading.Lock(), 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                now = count
            if stop and (now, False) == stop[1:]:
                os.kill(os.getpid(), stop[0])
            result = real(*given, **more)
            if stop and (now, True) == stop[1:]:
                os.kill(os.getpid(), stop[0])
            return result

        return call

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, counted(getattr(os, name)))
    try:
        main()
    except SystemExit as done:
        code = int(str(done.code or 0))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            (folder / "calls").write_text(str(count))
        os._exit(code)


def end(pid: int) -> int:
    """The exit code of a process; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder: Path, points: int, layers: int) -> dict[str, object]:
    models = [make.model(folder / str(i), i, layers=layers, hidden=32, vocab=256) for i in range(3)]
    recipe = make.recipe("della", *models[1:], base=models[0], parameters={"weight": 1.0, "density": 0.5})
    make.write_json(folder / "recipe.yml", recipe)
    out, wrong = folder / "out", list[str]()
    plait.merge(recipe).save(folder / "warm")  # so that no process loads a module anew
    assert end(start(folder, "-j", "1")) == 0, (folder / "said").read_text()
    calls = int((folder / "calls").read_text())
    expected = make.hashes(out, "*")
    last = range(calls - points // 2, calls)
    hits, resumed = Counter[str](), list[int]()
    for number, point in enumerate([*(i * calls // (points - len(last)) for i in range(points - len(last))), *last]):
        stop, after, code, at_most = SIGNALS[number % len(SIGNALS)], bool(number // len(SIGNALS) % 2), 0, calls
        for _ in range(5):  # the journal is written now and then: a run has a few calls more or less
            shutil.rmtree(out, ignore_errors=True)
            at_call = min(point, point - calls + at_most)
            if code := end(start(folder, "-j", str(1 + number // 2 % 2), stop=(stop, at_call + 1, after))):
                break
            at_most = int((folder / "calls").read_text())
        said, at = (
            (folder / "said").read_text(),
            f"{stop.name} {'after' if after else 'before'} call {point + 1} of {calls}",
        )
        if code == 0:
            hits["too late"] += 1
        elif code not in (-stop, 128 + stop):
            wrong.append(f"{at}: exit {code}: {said}")
        else:
            hits[stop.name] += 1
        if "Traceback" in said:
            wrong.append(f"{at}: {said}")
        record = plait.journal.read(out / plait.journal.NAME)
        left = out.exists() and make.hashes(out, "*") != expected  # more than nothing, less than all
        if code and stop != signal.SIGKILL and left != (record is not None):
            wrong.append(f"{at} leaves {sorted(p.name for p in out.iterdir()) if out.exists() else 'nothing'}")
        resumed.append(len(record.tensors) if record else 0)
        if code and (code := end(start(folder, "--resume", "-j", str(1 + point % 2)))):
            wrong.append(f"resumed after {at}: exit {code}: {(folder / 'said').read_text()}")
        if (found := make.hashes(out, "*")) != expected:
            differ = {name for name, _ in found.items() ^ expected.items()}
            wrong.append(f"{at}: other bytes in {sorted(differ)}")
    return {"calls": calls, "hits": dict(hits), "taken up": resumed, "wrong": wrong}


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    result = run(place, count, layers=3)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
