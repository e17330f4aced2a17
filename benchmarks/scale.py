"""Does time grow with the number of tensors alone, and what do a 70B model and a mixture of a trillion weights take to plan?

    python benchmarks/scale.py [--peer PATH/TO/mergekit-yaml] [--folder FOLDER]

Models of many small tensors are planned and merged: the seconds for each tensor must not grow. Recipes of a 70B model and of a
mixture with 60,000 tensors are checked and planned from sparse files; nothing is read. Then models of 1.3 GB are merged (with the
recipes of `peer.py`), and what that took is next to what the plans said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import yaml
from measure import measured, plait
from peer import made_elsewhere, recipes
from sparse import sparse

Shapes = dict[str, tuple[int, ...]]


def small(count: int) -> Shapes:
    """So many tensors of 64 entries, eight in each layer."""
    return {f"model.layers.{i // 8}.part{i % 8}.weight": (8, 8) for i in range(count)}


def llama(layers: int, hidden: int, inner: int, heads: int, grouped: int, vocabulary: int) -> Shapes:
    size = hidden // heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (grouped * size, hidden),
            "self_attn.v_proj": (grouped * size, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def mixture(layers: int, experts: int, hidden: int, inner: int, vocabulary: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{i}.self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"model.layers.{i}.mlp.gate.weight"] = (experts, hidden)
        for e in range(experts):
            shapes[f"model.layers.{i}.mlp.experts.{e}.gate_proj.weight"] = (inner, hidden)
            shapes[f"model.layers.{i}.mlp.experts.{e}.up_proj.weight"] = (inner, hidden)
            shapes[f"model.layers.{i}.mlp.experts.{e}.down_proj.weight"] = (hidden, inner)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def pair(folder: Path, shapes: Shapes, method: str = "ties") -> Path:
    """A recipe of a base and two variants of these tensors."""
    models = [sparse(folder / f"{len(shapes)}-{i}", shapes) for i in range(3)]
    made = {
        "merge_method": method,
        "base_model": str(models[0]),
        "models": [{"model": str(m)} for m in models[1:]],
        "parameters": {"weight": 0.5} | ({"density": 0.5} if method == "ties" else {}),
        "dtype": "bfloat16",
    }
    path = folder / f"{len(shapes)}-{method}.yml"
    path.write_text(yaml.safe_dump(made))
    return path


def plan(recipe: Path, folder: Path) -> dict[str, float]:
    done = subprocess.run(plait("plan", recipe, "--json"), cwd=folder, capture_output=True, check=True)
    totals: dict[str, float] = json.loads(done.stdout)["totals"]
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", help="mergekit-yaml of an environment of its own; runs 1,000 and 3,000 tensors")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--counts", default="1000,3000,10000,50000")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        out = folder / "out"
        print("| tensors | plait: seconds | CPU | MB | mergekit: seconds |\n|---:|---:|---:|---:|---:|")
        for count in map(int, options.counts.split(",")):
            recipe = pair(folder, small(count), "linear" if options.peer else "task_arithmetic")
            ours = measured(plait("merge", recipe, out, "--quiet"), folder)
            shutil.rmtree(out)
            theirs = ""
            if options.peer and count <= 3000:
                theirs = f"{measured([options.peer, str(recipe), str(out), '--lazy-unpickle'], folder).wall:.1f}"
                shutil.rmtree(out)
            print(f"| {count} | {ours.wall:.1f} | {ours.cpu:.1f} | {ours.peak:.0f} | {theirs} |", flush=True)

        print(
            "\n| recipe | tensors | output | check | plan | plan says: memory, computing |\n|---|---:|---:|---:|---:|---|"
        )
        large = {"70B, ties of 2": llama(80, 8192, 28672, 64, 8, 128256)}
        large["1T mixture, ties of 2"] = mixture(61, 328, 7168, 2330, 163840)
        for title, shapes in large.items():
            recipe = pair(folder, shapes)
            check = measured(plait("check", recipe), folder)
            planned = measured(plait("plan", recipe, "--json"), folder)
            t = plan(recipe, folder)
            print(
                f"| {title} | {len(shapes)} | {t['write_bytes'] / 1e9:.0f} GB | {check.wall:.1f} s | {planned.wall:.1f} s "
                f"| {t['memory_bytes'] / 1e6:.0f} MB, {t['compute_seconds']:.0f} s |",
                flush=True,
            )

        print("\n| merge of real numbers | plan says: s, MB | took: s after starting, MB |\n|---|---:|---:|")
        inputs = made_elsewhere(folder, 2048, 16)  # and so they are in the page cache
        tiny, path = made_elsewhere(folder / "tiny", 64, 1), folder / "recipe.yml"
        (start := folder / "start.yml").write_text(yaml.safe_dump(recipes(tiny, 1)["linear"]))
        for title, recipe in recipes(inputs, 16).items():
            path.write_text(yaml.safe_dump(recipe))
            t, walls, peak = plan(path, folder), [], 0.0
            for _ in range(3):
                for sign, merged in ((-1, start), (1, path)):
                    took = measured(plait("merge", merged, out, "--quiet"), folder)
                    shutil.rmtree(out)
                    walls.append(sign * took.wall)
                    peak = max(peak, took.peak * 1.048576)
            wall = median(a + b for a, b in zip(walls[::2], walls[1::2], strict=True))
            print(
                f"| {title} | {t['compute_seconds']:.1f}, {t['memory_bytes'] / 1e6:.0f} | {wall:.1f}, {peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
