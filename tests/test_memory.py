"""`--max-memory` and what a plan says of memory, against what real processes hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import make
import plait
from plait.errors import PlaitError
from plait.estimate import PIECES, TORCH, memory, portions, resident

#: bytes of the large tensor of a model: many pieces
LARGE = (4096, 2048)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of 17 MB, of which a tensor is 16 MB."""
    paths = []
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        tensors = {
            "large.weight": torch.randn(LARGE, generator=noise),
            "small.weight": torch.randn(64, 2048, generator=noise),
        }
        paths.append(tmp_path_factory.mktemp(f"model{seed}"))
        save_file({name: x.bfloat16() for name, x in tensors.items()}, paths[-1] / "model.safetensors")
        (paths[-1] / "config.json").write_text('{"model_type": "none"}')
    return paths


def recipe(method: str, models: list[Path]) -> dict[str, object]:
    if method == "linear":
        return make.recipe("linear", *models[1:], parameters={"weight": 0.5})
    return make.recipe(method, *models[1:], base=models[0], parameters={"weight": 0.5, "density": 0.5})


def peak(arguments: list[object]) -> tuple[int, str]:
    """(bytes that a process held at most, what it said); it is started by a small process, whose memory would count too."""
    code = (
        "import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:]); _, status, usage = os.wait4(p.pid, 0);"
        "print('peak', usage.ru_maxrss * 1024); sys.exit(os.waitstatus_to_exitcode(status))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rsplit("peak ", 1)[1]), done.stderr


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_row_42_memory(method: str, kernels: str, models: list[Path], tmp_path: Path) -> None:
    """A real merge holds no more than the least that `--max-memory` takes, nor than the plan says without a limit."""
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe(method, models)))
    plait_ = ["env", f"PLAIT_KERNELS={kernels}", sys.executable, "-m", "plait"]
    refused = subprocess.run(
        [*plait_, "merge", file, tmp_path / "out", "--max-memory", "1MB"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert not (tmp_path / "out").exists()
    least = int(refused.stderr.split("allow ")[1].split("MB")[0])
    held, _ = peak([*plait_, "merge", file, tmp_path / "small", "--quiet", "--max-memory", f"{least + 2}MB"])
    assert held <= (least + 2) * 10**6
    held, said = peak([*plait_, "merge", file, tmp_path / "free"])
    assert held <= (float(said.split("holds ")[1].split(" MB")[0]) + 1) * 10**6
    assert make.hashes(tmp_path / "small") == make.hashes(tmp_path / "free")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_largest_tensor_does_not_count(method: str, tmp_path: Path) -> None:
    """What a merge holds is the same for tensors of 64 MB and of 4 GB (mergekit holds 16 to 22 times the largest)."""
    said = []
    for rows in (1 << 14, 1 << 20):
        models = [sparse(tmp_path / f"{rows}-{i}", rows) for i in range(3)]
        said.append(memory(plait.merge(recipe(method, models)).plan, 4, PIECES[0]))
    assert abs(said[1] - said[0]) < 1 << 20


def sparse(folder: Path, rows: int) -> Path:
    """A model of one bfloat16 tensor of so many rows of 2048, whose zeros take no space on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "none"}')
    entry = {"dtype": "BF16", "shape": [rows, 2048], "data_offsets": [0, rows * 4096]}
    header = json.dumps({"large.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / "model.safetensors", 8 + len(header) + rows * 4096)
    return folder


def test_smaller_pieces_first(models: list[Path]) -> None:
    """A limit makes pieces smaller, then threads fewer; the plan shows both; less than the least is refused."""
    plan = plait.merge(recipe("linear", models)).plan
    assert portions(plan, 4, None) == (4, PIECES[0])
    tried = [(4, PIECES[0]), (4, PIECES[1]), (4, PIECES[2]), (3, PIECES[2]), (1, PIECES[2]), (1, PIECES[-1])]
    limits = [memory(plan, *each) - resident() for each in tried]
    assert limits == sorted(limits, reverse=True)
    for each, limit in zip(tried, limits, strict=True):
        threads, piece = portions(plan, 4, limit + resident() + (1 << 12))
        assert (threads, piece) >= each or abs(limits[0] - limit) < 1 << 20
    with pytest.raises(PlaitError, match="does not fit into that memory"):
        portions(plan, 4, 10**6)


def test_whole_matrices(models: list[Path]) -> None:
    """A method that takes whole matrices says which one needs the memory, and what else could be done."""
    plan = plait.merge(make.recipe("tsv_m", *models[1:], base=models[0])).plan
    with pytest.raises(PlaitError, match=r"(?s)large\.weight needs.*piece by piece"):
        portions(plan, 2, TORCH)


def test_the_plan_says_it(models: list[Path], tmp_path: Path) -> None:
    """`plait plan --max-memory` shows the threads and the memory that a merge under that limit will have."""
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe("linear", models)))
    command = [sys.executable, "-m", "plait", "plan", str(file), "--json", "-j", "64", "--max-memory"]
    free = json.loads(subprocess.run([*command, "9GB"], capture_output=True, text=True, check=True).stdout)["totals"]
    assert free["threads"] == 64
    limit = free["memory_bytes"] - 40_000_000
    tight = json.loads(subprocess.run([*command, str(limit)], capture_output=True, text=True, check=True).stdout)[
        "totals"
    ]
    assert tight["memory_bytes"] <= limit
