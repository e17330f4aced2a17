"""How much memory does a merge hold, for models of 1, 4 and 8 GB, more layers, more models, and one tensor of 4 GB?

    python benchmarks/memory.py [--folder FOLDER]

Inputs are sparse files: they take no disk, and read as zeros; an output takes its size, and is removed. Peak resident memory of
whole processes. It must not grow with the size of models, tensors and shards, nor with layers; each model more adds its piece.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from measure import measured, plait
from sparse import sparse

GB = 10**9


def llama(layers: int, nbytes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model of about so many bytes in bfloat16: two matrices a layer, 4,096 wide."""
    rows = nbytes // 2 // layers // 2 // 4096
    return {f"model.layers.{i}.{name}.weight": (rows, 4096) for i in range(layers) for name in ("up_proj", "gate_proj")}


#: title -> shapes, number of models
INPUTS = {
    "2 models of 1 GB": (llama(16, GB), 2),
    "2 models of 4 GB": (llama(16, 4 * GB), 2),
    "2 models of 8 GB": (llama(16, 8 * GB), 2),
    "2 models of 1 GB, 160 layers": (llama(160, GB), 2),
    "2 models of one 4 GB tensor": ({"model.embed_tokens.weight": (4 * GB // 2 // 4096, 4096)}, 2),
    "3 models of 1 GB": (llama(16, GB), 3),
    "8 models of 1 GB": (llama(16, GB), 8),
}


def recipe(method: str, models: list[Path]) -> dict[str, object]:
    base, *others = map(str, models)
    if method == "linear":
        return {"merge_method": method, "models": [{"model": str(m)} for m in models], "parameters": {"weight": 1}}
    parameters = {"weight": 0.5, "density": 0.5}
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": m} for m in others],
        "parameters": parameters,
    }


def rows(folder: Path, methods: list[str], merges: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    for title in merges:
        shapes, count = INPUTS[title]
        models = [sparse(folder / f"{title} {i}", shapes) for i in range(count)]
        peaks = {}
        for method in methods:
            path, out = folder / "recipe.yml", folder / "out"
            path.write_text(yaml.safe_dump(recipe(method, models)))
            peaks[method] = measured(plait("merge", path, out, "--quiet"), folder).peak
            shutil.rmtree(out)
        yield title, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="a folder on a disk with 8 GB free")
    parser.add_argument("--methods", default="linear,ties,dare_ties,della")
    parser.add_argument("--inputs", default=",".join(INPUTS).replace(", 160", "; 160"))
    options = parser.parse_args()
    methods = options.methods.split(",")
    print(f"| peak memory, MB | {' | '.join(methods)} |\n|---|{'---:|' * len(methods)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for title, peaks in rows(
            Path(folder), methods, [t.replace("; 160", ", 160") for t in options.inputs.split(",")]
        ):
            print(f"| {title} | {' | '.join(f'{peaks[m]:.0f}' for m in methods)} |", flush=True)


if __name__ == "__main__":
    main()
