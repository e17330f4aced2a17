"""Experts: a tensor for each, or all of a layer in one; read as each other, merged with each other, written as asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import make
import plait
from align.variants import other
from arch.zoo import forward, load, pen, save
from plait.align.experts import Layout, layout_of, relaid
from plait.checkpoint import InMemory
from plait.checkpoint.pieced import Made, Pieced, Run, Turned
from plait.checkpoint.renamed import Renamed
from plait.errors import ModelError, PlanError
from plait.testing.checkpoints import check, same
from plait.types import TensorSpec

__all__ = ["other", "pen"]

QWEN, MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
LAYOUTS = [Layout(QWEN), Layout(MIXTRAL), Layout(None), Layout(None, turned=True)]
FAMILIES = ["mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v3", "olmoe", "glm4-moe"]


def experts(count: int = 3, wide: int = 4, hidden: int = 6, words: tuple[str, str, str] = QWEN) -> dict[str, Tensor]:
    """Split experts of two layers, a router, and a tensor that is none of either."""
    made = {"model.norm.weight": torch.randn(hidden)}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp"
        made[f"{prefix}.gate.weight"] = torch.randn(count, hidden)
        for e in range(count):
            for word, shape in zip(words, ((wide, hidden), (wide, hidden), (hidden, wide)), strict=True):
                made[f"{prefix}.experts.{e}.{word}.weight"] = torch.randn(shape)
    return made


def fused(made: dict[str, Tensor], turned: bool = False, words: tuple[str, str, str] = QWEN) -> dict[str, Tensor]:
    """The same fused, in plain numpy."""
    out = {n: x for n, x in made.items() if ".experts." not in n}
    for prefix in dict.fromkeys(n.split(".experts.")[0] + ".experts" for n in made if ".experts." in n):
        count = len({n.split(".")[5] for n in made if n.startswith(prefix)})
        gate, up, down = (
            np.stack([made[f"{prefix}.{e}.{word}.weight"].numpy() for e in range(count)]) for word in words
        )
        both = np.concatenate([gate, up], axis=1)
        if turned:
            both, down = both.transpose(0, 2, 1), down.transpose(0, 2, 1)
        out |= {f"{prefix}.gate_up_proj": torch.tensor(both), f"{prefix}.down_proj": torch.tensor(down)}
    return out


@pytest.mark.parametrize("there", LAYOUTS, ids=str)
@pytest.mark.parametrize("here", LAYOUTS, ids=str)
def test_each_layout_is_read_as_each(here: Layout, there: Layout) -> None:
    """Every layout read as every other has the tensors that numpy makes of it, and keeps the contract of a checkpoint."""
    plain = {layout: experts(words=layout.words or QWEN) for layout in (here, there)}
    torch.manual_seed(0)
    values = list(experts().values())
    files = {}
    for layout in (here, there):
        made = dict(zip(plain[layout], values, strict=True))
        files[layout] = made if layout.words else fused(made, layout.turned)
    view = relaid(InMemory(files[here]), there)
    assert check(view) == []
    assert set(view.specs) == set(files[there])
    assert [n for n, x in files[there].items() if not same(view.read(n), x)] == []
    assert layout_of(view.specs) == there


def test_an_order_moves_experts_and_router() -> None:
    """With an order, experts and the router's rows are those of the numbers named; the other layer is as it was."""
    made, prefix = experts(), "model.layers.1.mlp"
    moved = relaid(InMemory(made), Layout(QWEN), {f"{prefix}.experts": [2, 0, 1]})
    for e, was in enumerate([2, 0, 1]):
        for word in QWEN:
            name = f"{prefix}.experts.{{}}.{word}.weight"
            assert same(moved.read(name.format(e)), made[name.format(was)])
        assert same(moved.read(f"{prefix}.gate.weight")[e], made[f"{prefix}.gate.weight"][was])
    for name in made:
        if not name.startswith(prefix):
            assert same(moved.read(name), made[name])


def test_experts_that_differ_stay_as_they_are() -> None:
    """Experts of different sizes, or with a number left out, have no fused form and are not touched."""
    uneven = experts()
    uneven["model.layers.0.mlp.experts.1.gate_proj.weight"] = torch.randn(2, 6)
    uneven.pop("model.layers.1.mlp.experts.0.up_proj.weight")
    assert set(relaid(InMemory(uneven), Layout(None)).specs) == set(uneven)


def test_views_keep_the_contract() -> None:
    """Names changed, rows put together and matrices turned: each view is a checkpoint."""
    torch.manual_seed(1)
    inner = InMemory({"a": torch.randn(5, 3), "b": torch.randn(4, 3).double(), "c": torch.randn(3, 4, 2).bfloat16()})
    assert check(Renamed(inner, {"a": "b", "b": "a"})) == []
    assert same(Renamed(inner, {"a": "b", "b": "a"}).read("a"), inner.read("b"))
    runs = (Run("a", 3, 5), Run("a", 0, 1), Run("a", 2, 2), Run("a", 1, 4))
    pieced = Pieced(inner, {"x": Made(TensorSpec("F32", (2, 3, 3)), runs), "c": None})
    assert check(pieced) == []
    assert same(pieced.read("x").reshape(6, 3), inner.read("a")[[3, 4, 0, 1, 2, 3]])
    turned = Turned(inner, ["c"])
    assert check(turned) == []
    assert same(turned.read("c"), inner.read("c").transpose(1, 2).contiguous())


def test_views_refuse_what_does_not_fit() -> None:
    """Two tensors of one name, and rows that do not add up, are errors when the view is made."""
    inner = InMemory({"a": torch.ones(5, 3), "b": torch.ones(4, 3)})
    with pytest.raises(ModelError, match="two tensors would be called b"):
        Renamed(inner, {"a": "b"})
    with pytest.raises(ModelError, match="x cannot be put together"):
        Pieced(inner, {"x": Made(TensorSpec("F32", (4, 3)), (Run("a", 0, 5),))})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("base", ["split", "fused"])
def test_layouts_merge_with_each_other(
    name: str, base: str, pen: Path, other: Callable[..., Path], tmp_path: Path
) -> None:
    """A fused and a split model give the bytes that two split ones give, in the base's layout, and transformers runs it."""
    one, two = save(name, pen), other(name, "two")
    wanted = plait.merge(make.recipe("task_arithmetic", two, base=one))
    plait.merge(make.recipe("passthrough", two, parameters={}), expert_layout="fused").save(tmp_path / "fused")
    assert str(layout_of(plait.open(tmp_path / "fused").specs)) == "fused"
    if base == "fused":
        plait.merge(make.recipe("passthrough", one, parameters={}), expert_layout="fused").save(tmp_path / "base")
        merge = plait.merge(make.recipe("task_arithmetic", two, base=tmp_path / "base"))
        assert any("the split experts of" in note for note in merge.plan.notes)
        merge.save(tmp_path / "out")
        assert str(layout_of(merge.specs)) == "fused"
        back = plait.merge(make.recipe("passthrough", tmp_path / "out", parameters={}), expert_layout="split")
    else:
        back = plait.merge(make.recipe("task_arithmetic", tmp_path / "fused", base=one))
        assert any("the fused experts of" in note for note in back.plan.notes)
        back.save(tmp_path / "out")
    assert dict(back.specs) == dict(wanted.specs)
    assert [n for n, x in back if not same(x, wanted.read(n))] == []
    wanted.save(tmp_path / "wanted")
    loaded = load(tmp_path / "out", name)
    for x, y in zip(loaded.state_dict().values(), load(tmp_path / "wanted", name).state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert torch.isfinite(forward(loaded)).all()


@pytest.mark.parametrize("name", ["gpt-oss", "llama4"])
def test_one_layout_only(name: str, pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """gpt-oss and Llama 4 merge as they are and run; a layout that transformers would not read is refused by name."""
    recipe = make.recipe("linear", save(name, pen), other(name, "two"))
    plait.merge(recipe).save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", name))).all()
    if name == "llama4":
        with pytest.raises(PlanError, match="cannot be written split"):
            plait.merge(recipe, expert_layout="split")


def test_reading_is_bounded() -> None:
    """Rows of a fused tensor read only these rows of the experts that they lie in."""
    made = experts(count=4)
    asked: list[tuple[str, tuple[int, int] | None]] = []

    class Watched(InMemory):
        def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
            asked.append((name, rows))
            return super().read(name, rows)

    view = relaid(Watched(made), Layout(None))
    view.read("model.layers.0.mlp.experts.gate_up_proj", (6, 9))
    prefix = "model.layers.0.mlp.experts"
    assert asked == [(f"{prefix}.0.up_proj.weight", (2, 4)), (f"{prefix}.1.gate_proj.weight", (0, 1))]


def test_the_planned_place_of_matching(tmp_path: Path, pen: Path) -> None:
    """A model whose experts were shuffled is, read in the inverse order, the model that it was, to the byte."""
    made = load_file(save("qwen3-moe", pen) / "model.safetensors")
    prefix = "model.layers.2.mlp.experts"
    order = random.Random(3).sample(range(4), 4)
    shuffled = relaid(InMemory(made), Layout(QWEN), {prefix: order})
    save_file({n: shuffled.read(n) for n in shuffled.specs}, tmp_path / "shuffled.safetensors")
    inverse = [order.index(e) for e in range(4)]
    back = relaid(plait.open(tmp_path / "shuffled.safetensors"), Layout(QWEN), {prefix: inverse})
    assert [n for n, x in made.items() if not same(back.read(n), x)] == []
