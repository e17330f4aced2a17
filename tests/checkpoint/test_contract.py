"""Everything that claims to be a checkpoint keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import make
import plait
from plait.checkpoint import Checkpoint, InMemory
from plait.checkpoint.dtypes import spec_of
from plait.testing.checkpoints import LAWS, check, same
from plait.types import DTYPES, TensorSpec

SHAPES = ((), (1,), (0,), (5,), (0, 4), (4, 0), (3, 0, 2), (9, 2), (2, 3, 4), (1, 1, 1))
DTYPES_HERE = [getattr(torch, d.name) for c, d in DTYPES.items() if c != "F4" and hasattr(torch, d.name)]


def odd() -> make.Tensors:
    """A tensor of every dtype, and one of every shape."""
    raw = torch.Generator().manual_seed(0)
    made = {}
    for dtype in DTYPES_HERE:
        numbers = torch.randint(0, 2, (6, 24), dtype=torch.uint8, generator=raw)
        made[f"of.{dtype}"] = numbers.bool() if dtype == torch.bool else numbers.view(dtype).clone()
    for shape in SHAPES:
        made[f"shape.{'x'.join(map(str, shape)) or 'scalar'}"] = torch.randn(shape, generator=raw)
    return made


def safetensors(folder: Path, made: make.Tensors) -> Checkpoint:
    save_file(made, folder / "model.safetensors")
    return plait.open(folder)


def sharded(folder: Path, made: make.Tensors, index: bool = True, pickled: bool = False) -> Checkpoint:
    names, weight_map = list(made), {}
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    for i in range(3):
        part = {name: made[name] for name in names[i::3]}
        file = f"{stem}-{i + 1:05d}-of-00003{suffix}"
        weight_map |= dict.fromkeys(part, file)
        torch.save(part, folder / file) if pickled else save_file(part, folder / file)
    if index:
        make.write_json(folder / f"{stem}{suffix}.index.json", {"weight_map": weight_map})
    return plait.open(folder)


def pickled(folder: Path, made: make.Tensors) -> Checkpoint:
    torch.save(made, folder / "pytorch_model.bin")
    return plait.open(folder)


def nested(folder: Path, made: make.Tensors) -> Checkpoint:
    parameters = {n: torch.nn.Parameter(x) if x.is_floating_point() else x for n, x in made.items()}
    torch.save({"state_dict": parameters, "epoch": 3}, folder / "model.pt")
    return plait.open(folder / "model.pt")


def views(folder: Path, made: make.Tensors) -> Checkpoint:
    """Tensors that share one storage, transposed, offset, repeated."""
    torch.save(
        {n: torch.stack([x, x], -1)[..., 1].clone().T if x.ndim == 2 else x.expand(x.shape) for n, x in made.items()},
        folder / "pytorch_model.bin",
    )
    return plait.open(folder)


def memory(folder: Path, made: make.Tensors) -> Checkpoint:
    return InMemory(made, {"architectures": ["Odd"]})


KINDS: dict[str, Callable[[Path, make.Tensors], Checkpoint]] = {
    "safetensors": safetensors,
    "sharded": sharded,
    "sharded without index": lambda folder, made: sharded(folder, made, index=False),
    "pickled": pickled,
    "sharded pickled": lambda folder, made: sharded(folder, made, pickled=True),
    "state_dict": nested,
    "views": views,
    "in memory": memory,
}


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind: str, tmp_path: Path) -> None:
    """Whatever the files are like, the checkpoint keeps the contract, also for odd shapes and dtypes."""
    assert check(KINDS[kind](tmp_path, odd())) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "views"])
def test_same_tensors(kind: str, tmp_path: Path) -> None:
    """The tensors come out as they went in, bit for bit, all of them."""
    made = odd()
    checkpoint = KINDS[kind](tmp_path, made)
    assert set(checkpoint.specs) == set(made)
    assert [n for n, x in made.items() if checkpoint.specs[n] != spec_of(x) or not same(checkpoint.read(n), x)] == []


RECIPES = [
    ("linear", 2, {}),
    ("slerp", 1, {"parameters": {"t": 0.3}}),
    ("ties", 2, {"parameters": {"weight": 1.0, "density": 0.5}}),
    ("dare_ties", 2, {"parameters": {"weight": 1.0, "density": 0.5}}),
    ("arcee_fusion", 1, {"parameters": {}}),
    ("passthrough", 0, {"parameters": {}}),
]


@pytest.mark.parametrize(("method", "models", "rest"), RECIPES, ids=[r[0] for r in RECIPES])
def test_merge(method: str, models: int, rest: dict[str, object], tmp_path: Path) -> None:
    """A merge that has not been written is a checkpoint like any other."""
    base = tmp_path / "base"
    llama = make.tensors(9, layers=1, vocab=7)
    made = {name: x for name, x in llama.items() if "self_attn" not in name and "mlp.up" not in name} | {
        "model.layers.0.self_attn.empty": torch.zeros(4, 0),
        "model.layers.0.self_attn.scalar": torch.tensor(2.0),
        "model.layers.0.self_attn.position_ids": torch.arange(5),
        "model.layers.0.self_attn.kernel": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)),
    }
    make.write(base, made)
    others = [
        make.write(tmp_path / str(i), {n: x + 0.01 * i if x.is_floating_point() else x for n, x in made.items()})
        for i in range(models)
    ]
    base_is_used = {} if method in ("linear", "passthrough") else {"base": base}
    merge = plait.merge(make.recipe(method, *(others or [base]), **base_is_used, **rest))
    assert set(merge.specs) == set(made)
    assert check(merge) == []


class Lying:
    """A checkpoint with one fault, chosen by name."""

    def __init__(self, fault: str) -> None:
        self.fault, self.count = fault, 0
        self.config: dict[str, object] = {}
        self.specs = {"x": TensorSpec("F16" if fault == "dtype" else "F32", (2, 5) if fault == "shape" else (5, 2))}
        self.x = torch.arange(10.0).reshape(5, 2)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        self.count += 1
        x = self.x if rows is None else self.x[rows[0] : rows[1]]
        if self.fault == "rows" and rows == (1, 3):
            x = x.flip(0)
        if self.fault == "forgets":
            self.specs = {}
        if self.fault == "threads" and self.count > 30:
            x = x + self.count
        return x if self.fault == "shares" else x.clone()


@pytest.mark.parametrize("fault", ["dtype", "shape", "rows", "shares", "forgets", "threads"])
def test_faults_are_found(fault: str) -> None:
    """The suite can fail: each fault is found, and a checkpoint without one passes."""
    assert check(Lying("none")) == []
    assert check(Lying(fault)) != []


def test_laws_can_be_skipped() -> None:
    """Each law can be left out by its name."""
    assert check(Lying("rows"), skip=LAWS) == []


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """torch has two threads, so that a reader that forgets to restore their number is seen."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
