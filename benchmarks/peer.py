"""How long does a merge take, next to mergekit-yaml and to the floor, on the same inputs? Whole processes, in turn.

    python benchmarks/peer.py --peer PATH/TO/mergekit-yaml [--runs 3] [--merges linear,slerp,ties] [--hidden 2048 --layers 16]

The floor reads every input with two threads and writes as many bytes as the output has; it computes nothing. All figures are
of whole processes, start-up included: wall and CPU seconds, peak resident memory. Medians of paired runs, ratios pair by pair.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

FLOOR = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
*inputs, size, out = sys.argv[1:]
def read(path, start, stop):
    buffer, file = bytearray(1 << 20), os.open(path, os.O_RDONLY)
    while start < stop:
        start += os.preadv(file, [buffer], start)
jobs = []
for path in inputs:
    half = os.path.getsize(path) // 2
    jobs += [(path, 0, half), (path, half, 2 * half)]
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda job: read(*job), jobs))
block, left = bytes(1 << 20), int(size)
file = os.open(out, os.O_CREAT | os.O_WRONLY)
os.posix_fallocate(file, 0, left)
while left > 0:
    left -= os.write(file, block[:left])
os.fsync(file)
"""


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
    """The inputs, made by a process of their own: a child's peak memory counts what its parent held when it began."""
    code = "import sys; from pathlib import Path; from inputs import make; make(Path(sys.argv[1]), models=4, "
    code += f"hidden={hidden}, layers={layers})"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent)
    return [folder / f"m{i}" for i in range(4)]


def run(command: list[str], where: Path) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak resident MB) of a process that must succeed."""
    with open(where / "log", "w") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=where)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
    if status:
        sys.exit(f"{shlex.join(command)} failed:\n{(where / 'log').read_text()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", help="mergekit-yaml of an environment of its own")
    parser.add_argument("--peer-options", default="--lazy-unpickle --no-write-model-card --no-copy-tokenizer")
    parser.add_argument(
        "--merges",
        default="linear,linear4,nuslerp,model_stock,karcher,task_arithmetic,slerp,ties,breadcrumbs,sce,dare_ties,della,passthrough",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where inputs are kept from run to run")
    options = parser.parse_args()
    plait = [str(Path(sys.executable).with_name("plait")), "merge"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        inputs = made_elsewhere(folder.resolve(), options.hidden, options.layers)
        size = inputs[0].joinpath("model.safetensors").stat().st_size
        print(
            f"{platform.machine()}, {os.cpu_count()} cores; inputs of {size / 1e9:.2f} GB; {options.runs} runs in turn"
        )
        print(
            "| merge | against | plait: wall, CPU, peak | it: wall, CPU, peak | wall ratio | CPU ratio |\n"
            "|---|---|---|---|---|---|"
        )
        for name in options.merges.split(","):
            recipe = recipes(inputs, options.layers)[name]
            path, out = folder / f"{name}.yml", folder / "out"
            path.write_text(yaml.safe_dump(recipe))
            ours = [*plait, str(path), str(out), "--quiet"]
            read = [str(p / "model.safetensors") for p in inputs if str(p) in path.read_text()]
            others = {"floor": [sys.executable, "-c", FLOOR, *read, str(size), str(out / "floor")]}
            if options.peer:
                others["peer"] = [options.peer, str(path), str(out), *shlex.split(options.peer_options)]
            for against, theirs in others.items():
                a, b = [], []
                for _ in range(options.runs):
                    for command, figures in ((ours, a), (theirs, b)):
                        shutil.rmtree(out, ignore_errors=True)
                        if against == "floor" and figures is b:
                            out.mkdir()
                        figures.append(run(command, folder))
                shutil.rmtree(out, ignore_errors=True)
                print(
                    f"| {name} | {against} | {_figures(a)} | {_figures(b)} | {_ratio(b, a, 0)} | {_ratio(b, a, 1)} |",
                    flush=True,
                )


def _figures(runs: list[tuple[float, float, float]]) -> str:
    wall, cpu, peak = (statistics.median(column) for column in zip(*runs, strict=True))
    return f"{wall:.1f} s, {cpu:.1f} s, {peak:.0f} MB"


def _ratio(theirs: list[tuple[float, float, float]], ours: list[tuple[float, float, float]], which: int) -> str:
    pairs = [b[which] / a[which] for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


if __name__ == "__main__":
    main()
