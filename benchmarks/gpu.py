"""How long does a merge take on the CPU and on a GPU of the same machine? Whole processes, in turn.

    python benchmarks/gpu.py [--device cuda] [--runs 2] [--merges linear,ties,iso_c] [--hidden 2048] [--layers 4]

Prints the seconds of each process, those of merging and writing alone, and the most memory that PyTorch took on the GPU. Inputs
are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from inputs import make
from peer import recipes, remember

MERGE = """
import json, sys, torch, plait
recipe, out, device = sys.argv[1:]
saved = plait.merge(recipe).save(out, device=device)
kind = getattr(torch, device.split(":")[0])
print(json.dumps([saved.seconds, kind.max_memory_allocated() / 1e6 if device != "cpu" else 0]))
"""


def spectral(paths: list[Path]) -> dict[str, dict[str, object]]:
    """Methods that decompose matrices."""
    base, *variants = map(str, paths)
    made: dict[str, dict[str, object]] = {}
    for method in ("iso_c", "tsv_m", "wudi"):
        made[method] = {"merge_method": method, "base_model": base, "models": [{"model": m} for m in variants]}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--merges", default="linear,ties,dare_ties,sce,iso_c,tsv_m,wudi")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path, help="where to keep the runs")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = make(folder, models=4, hidden=options.hidden, layers=options.layers)
        remember([path / "model.safetensors" for path in inputs])
        known = recipes(inputs, options.layers) | spectral(inputs)
        for name in options.merges.split(","):
            (folder / "recipe.yml").write_text(yaml.safe_dump(known[name]))
            for run in range(options.runs):
                for device in ("cpu", options.device):
                    out = folder / f"out-{name}-{run}-{device}"
                    begun = time.perf_counter()
                    command = [sys.executable, "-c", MERGE, str(folder / "recipe.yml"), str(out), device]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    wall = time.perf_counter() - begun
                    seconds, nbytes = json.loads(done.stdout.splitlines()[-1])
                    print(f"{name:12s}{device:8s}{wall:8.2f} s {seconds:8.2f} s merging {nbytes:8.0f} MB", flush=True)
                    found.append({"merge": name, "device": device, "wall": wall, "merging": seconds, "gpu_mb": nbytes})
                    subprocess.run(["rm", "-rf", str(out)], check=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
