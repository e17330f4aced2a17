"""How long does plait take to say its options, and to plan and merge tiny models?

python benchmarks/start.py [--runs 5] [--peer PATH/TO/mergekit-yaml]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import yaml
from measure import Figures, measured, plait


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peer", help="mergekit-yaml of an environment of its own")
    options = parser.parse_args()
    models = Path(__file__).parents[1] / "src" / "plait" / "demo" / "models"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, out = folder / "recipe.yml", folder / "out"
        both = [{"model": str(models / name), "parameters": {"weight": 0.5}} for name in ("add", "rev")]
        path.write_text(yaml.safe_dump({"merge_method": "linear", "models": both, "dtype": "bfloat16"}))
        commands = {
            "plait --help": plait("--help"),
            "plait check": plait("check", path),
            "plait plan": plait("plan", path, "--json"),
            "plait merge, 1.7 MB": plait("merge", path, out, "--quiet"),
        }
        if options.peer:
            commands["mergekit-yaml --help"] = [options.peer, "--help"]
            commands["mergekit-yaml, 1.7 MB"] = [options.peer, str(path), str(out)]
        print("| command | seconds | CPU seconds | MB |\n|---|---:|---:|---:|")
        for title, command in commands.items():
            best: Figures | None = None
            for _ in range(options.runs):
                shutil.rmtree(out, ignore_errors=True)
                f = measured(command, folder)
                best = f if best is None or f.wall < best.wall else best
            assert best
            print(f"| `{title}` | {best.wall:.2f} | {best.cpu:.2f} | {best.peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
