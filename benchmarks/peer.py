"""How long does a merge take, next to mergekit-yaml and to the floor, on the same inputs? Whole processes, in turn.

    python benchmarks/peer.py [--peer PATH/TO/mergekit-yaml] [--json FILE] [--runs 3] [--merges linear,ties] [--budget SECONDS]

The floor reads every input with two threads and then writes as many bytes as the output has, onto the disk (past the page cache
and with `fsync`, as plait does); it computes nothing. Rounds go through all merges, and each merge runs floor, plait and peer one
after the other; `--budget` leaves out what would not end in time. Inputs are in the page cache, but for `--cold`, where they are
dropped from it before each run and another process holds the memory that they do not need (Linux; one merge after the other, and
no peer, which would not find room), and `--slow`, where the disk has so many MB a second besides (Linux, root); `--memory` writes
the outputs to a file system in memory, where the disk's speed plays no part. `table.py` makes of the JSON what the README shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from measure import crowded, fill, machine, measured, plait, slow_disk

FLOOR = """
import mmap, os, sys
from concurrent.futures import ThreadPoolExecutor
*inputs, size, out = sys.argv[1:]
def read(path, start, stop):
    buffer, file = bytearray(1 << 19), os.open(path, os.O_RDONLY)
    while start < stop:
        start += os.preadv(file, [buffer], start)
jobs = []
for path in inputs:
    half = os.path.getsize(path) // 2
    jobs += [(path, 0, half), (path, half, 2 * half)]
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda job: read(*job), jobs))
left = int(size)
file = os.open(out, os.O_CREAT | os.O_WRONLY)
os.posix_fallocate(file, 0, left)
block = mmap.mmap(-1, 1 << (21 if os.major(os.fstat(file).st_dev) else 19))
if os.major(os.fstat(file).st_dev):
    direct, at = os.open(out, os.O_WRONLY | os.O_DIRECT), 0
    for at in range(0, left - left % len(block), len(block)):
        os.pwrite(direct, block, at)
    left -= os.lseek(file, at + len(block), os.SEEK_SET)
while left > 0:
    left -= os.write(file, memoryview(block)[:left])
os.fsync(file)
"""

#: the merges of the goal, the quick ones first
MERGES = (
    "linear linear4 nuslerp model_stock karcher task_arithmetic slerp passthrough dare_ties ties breadcrumbs sce della"
)
#: those of which a run of the peer takes minutes: once
SLOW = "dare_ties ties breadcrumbs sce della"


def recipes(paths: list[Path], layers: int) -> dict[str, dict[str, object]]:
    """Name -> recipe, over a base and three variants."""
    base, *variants = map(str, paths)

    def sources(count: int, **parameters: float) -> list[dict[str, object]]:
        return [{"model": m, "parameters": parameters} for m in variants[:count]]

    def recipe(method: str, models: list[dict[str, object]], **more: object) -> dict[str, object]:
        return {"merge_method": method, "models": models, "dtype": "bfloat16", **more}

    both = [{"model": m, "parameters": {"weight": 0.5}} for m in (base, variants[0])]
    gradients = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    pair = [{"model": m, "layer_range": [0, layers]} for m in (base, variants[0])]
    stack = [{"sources": [{"model": m, "layer_range": [0, layers * 3 // 4]}]} for m in (base, variants[0])]
    return {
        "linear": recipe("linear", both),
        "linear4": recipe("linear", [{"model": base, "parameters": {"weight": 0.25}}, *sources(3, weight=0.25)]),
        "nuslerp": recipe("nuslerp", sources(2, weight=0.5)),
        "model_stock": recipe("model_stock", [{"model": m} for m in variants], base_model=base),
        "karcher": recipe("karcher", [{"model": m} for m in variants[:2]]),
        "task_arithmetic": recipe("task_arithmetic", sources(3, weight=0.3), base_model=base),
        "slerp": {
            "merge_method": "slerp",
            "base_model": base,
            "slices": [{"sources": pair}],
            "parameters": {"t": gradients},
            "dtype": "bfloat16",
        },
        "ties": recipe("ties", sources(3, weight=0.3, density=0.5), base_model=base),
        "breadcrumbs": recipe("breadcrumbs", sources(3, weight=0.3, density=0.9), base_model=base),
        "sce": recipe("sce", [{"model": m} for m in variants], base_model=base, parameters={"select_topk": 0.5}),
        "dare_ties": recipe("dare_ties", sources(3, weight=0.3, density=0.5), base_model=base),
        "della": recipe("della", sources(2, weight=0.3, density=0.5), base_model=base),
        "passthrough": {"merge_method": "passthrough", "slices": stack, "dtype": "bfloat16"},
    }


def made_elsewhere(folder: Path, hidden: int, layers: int) -> list[Path]:
    """The inputs, made by a process of their own: what this one holds would count as its children's."""
    code = "import sys; from pathlib import Path; from inputs import make; make(Path(sys.argv[1]), models=4, "
    code += f"hidden={hidden}, layers={layers})"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent)
    return [folder / f"m{i}" for i in range(4)]


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(paths: list[Path]) -> None:
    """Bring files into the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def version(peer: str) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
    python = Path(peer).with_name("python")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return "mergekit {}, PyTorch {}".format(*done.stdout.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", help="mergekit-yaml of an environment of its own")
    parser.add_argument("--peer-options", default="--lazy-unpickle --no-write-model-card --no-copy-tokenizer")
    parser.add_argument("--merges", default=",".join(MERGES.split()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slow-runs", type=int, default=1, help=f"runs of {SLOW}, with a peer")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds")
    parser.add_argument("--cold", action="store_true", help="inputs are not in the page cache")
    parser.add_argument(
        "--slow", type=int, help="MB a second that the disk reads, and writes; inputs are not in the cache"
    )
    parser.add_argument("--memory", action="store_true", help="outputs in /dev/shm")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where inputs are kept from run to run")
    parser.add_argument("--json", type=Path, help="a file to add the runs to")
    options = parser.parse_args()
    if options.cold and options.peer:
        parser.error("with --cold there is no room for a peer")
    began = time.monotonic()
    where = "slow" if options.slow else "cold" if options.cold else "memory" if options.memory else "disk"
    with (
        tempfile.TemporaryDirectory() as temporary,
        tempfile.TemporaryDirectory(dir="/dev/shm" if options.memory else None) as other,
        slow_disk(options.folder or Path(temporary), options.slow * 10**6) if options.slow else nullcontext() as group,
        ExitStack() as crowd,
    ):
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True, parents=True)
        out = Path(other) / "out" if options.memory else folder / "out"
        inputs = made_elsewhere(folder, options.hidden, options.layers)
        weights = [path / "model.safetensors" for path in inputs]
        if where not in ("cold", "slow"):
            remember(weights)
        found: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        found |= {"machine": machine()}
        found |= {"slow": options.slow} if options.slow else {}
        nbytes = weights[0].stat().st_size
        found |= {"peer": version(options.peer)} if options.peer else {}
        runs = found.setdefault("runs", [])
        print(
            f"{machine()}; inputs of {nbytes / 1e9:.2f} GB; {found.get('peer', 'no peer')}; {where}",
            flush=True,
        )
        took: dict[tuple[str, str], float] = {}
        turns = list(product(range(max(options.runs, options.slow_runs)), options.merges.split(",")))
        held, other_files = 0, folder / "hole"
        if options.cold:
            turns.sort(key=lambda turn: options.merges.split(",").index(turn[1]))
        for number, name in turns:
            if number >= (options.slow_runs if name in SLOW.split() and options.peer else options.runs):
                continue
            path = folder / f"{name}.yml"
            path.write_text(yaml.safe_dump(recipes(inputs, options.layers)[name]))
            read = [w for w, p in zip(weights, inputs, strict=True) if str(p) in path.read_text()]
            size = nbytes if name != "passthrough" else _stacked(options)
            commands = {
                "floor": [sys.executable, "-S", "-E", "-c", FLOOR, *map(str, read), str(size), str(out / "floor")],
                "plait": plait("merge", path, out, "--quiet"),
            }
            if options.peer:
                commands["peer"] = [options.peer, str(path), str(out), *shlex.split(options.peer_options)]
            if time.monotonic() - began + sum(took.get((name, who), 0) for who in commands) > options.budget:
                continue
            if options.cold and held != len(read):
                held = len(read)
                forget(weights)
                crowd.close()
                crowd.enter_context(crowded(held * nbytes + 10**9))
            for who, command in commands.items():
                shutil.rmtree(out, ignore_errors=True)
                if who == "floor":
                    out.mkdir()
                if where in ("cold", "slow"):
                    forget(weights)
                os.sync()
                if where == "cold":
                    fill(other_files, held * nbytes)
                    if who == "plait":
                        subprocess.run(
                            plait("check", path), check=True, capture_output=True
                        )  # it is in the cache itself
                f = measured(command, folder, group=group)
                took[name, who] = f.wall + 1
                runs.append(
                    {
                        "merge": name,
                        "who": who,
                        "where": where,
                        "round": number,
                        "input_bytes": nbytes,
                        "load": os.getloadavg()[0],
                        **vars(f),
                    }
                )
                print(f"{name:16s}{who:6s}{f.wall:8.2f} s {f.cpu:8.2f} s CPU {f.peak:7.0f} MB", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        other_files.unlink(missing_ok=True)


def _stacked(options: argparse.Namespace) -> int:
    """Bytes of the frankenmerge: three quarters of the layers, twice."""
    hidden = options.hidden
    layer = 3 * hidden * 2 * hidden + hidden * hidden * 5 // 2 + 2 * hidden
    return 2 * (layer * 2 * (options.layers * 3 // 4) + 32000 * hidden + hidden)


if __name__ == "__main__":
    main()
