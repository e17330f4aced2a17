"""Stop a real merge at many points over its run, go on with --resume, and compare every file with an undisturbed run.

    python tests/interrupt.py FOLDER [POINTS]

Each merge is the command line in a forked process of its own, so that a start costs nothing; the signals are real. Prints JSON:
how often each signal hit, how many tensors were taken up again, and what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import make
import plait
import plait.journal
from plait.cli import main

plait.journal.INTERVAL = 0.01  # seconds: a merge of a second is as long as an hour is with the usual one
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def start(folder: Path, *options: str) -> int:
    """Fork a process that merges into `folder/out`; its output goes to `folder/said`."""
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
        "400KB",
        *options,
    ]
    code = 1
    try:
        main()
    except SystemExit as done:
        code = int(str(done.code or 0))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(pid: int) -> int:
    """The exit code of a process; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder: Path, points: int, layers: int) -> dict[str, object]:
    models = [make.model(folder / str(i), i, layers=layers, hidden=64, vocab=512) for i in range(3)]
    recipe = make.recipe("della", *models[1:], base=models[0], parameters={"weight": 1.0, "density": 0.5})
    make.write_json(folder / "recipe.yml", recipe)
    out, wrong = folder / "out", list[str]()
    plait.merge(recipe).save(folder / "warm")  # so that no process loads a module anew
    begun = time.monotonic()
    assert end(start(folder)) == 0, (folder / "said").read_text()
    whole = time.monotonic() - begun
    expected = make.hashes(out, "*")
    hits, point, resumed = Counter[str](), 0, list[int]()
    while point < points:
        shutil.rmtree(out)
        stop, delay = SIGNALS[point % len(SIGNALS)], whole * (0.2 + 0.85 * (point + 0.5) / points)
        child = start(folder, "-j", str(1 + point % 2))
        time.sleep(delay)
        os.kill(child, stop)
        code = end(child)
        said = (folder / "said").read_text()
        point += 1
        if code == 0:
            hits["too late"] += 1
        elif code not in (-stop, 128 + stop):
            wrong.append(f"{stop.name} after {delay:.3f} s: exit {code}: {said}")
        else:
            hits[stop.name] += 1
        if "Traceback" in said:
            wrong.append(f"{stop.name} after {delay:.3f} s: {said}")
        record = plait.journal.read(out / plait.journal.NAME)
        left = out.exists() and make.hashes(out, "*") != expected  # more than nothing, less than all
        if code and stop != signal.SIGKILL and left != (record is not None):
            wrong.append(f"{stop.name} after {delay:.3f} s leaves {sorted(p.name for p in out.iterdir())}")
        resumed.append(len(record.tensors) if record else 0)
        if code and (code := end(start(folder, "--resume", "-j", str(1 + point % 2)))):
            wrong.append(f"resumed after {stop.name}: exit {code}: {(folder / 'said').read_text()}")
        if (found := make.hashes(out, "*")) != expected:
            differ = {name for name, _ in found.items() ^ expected.items()}
            wrong.append(f"{stop.name} after {delay:.3f} s: other bytes in {sorted(differ)}")
    return {"seconds": round(whole, 3), "hits": dict(hits), "taken up": resumed, "wrong": wrong}


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    result = run(place, count, layers=6)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
