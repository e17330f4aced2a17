"""Names: the same tensors under other prefixes and older spellings are merged as if they had the base's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import make
import plait
from align.variants import Rename, other, sub
from arch.zoo import forward, load, pen, save
from plait.align.spelling import spelt
from plait.errors import PlanError
from plait.testing.checkpoints import same
from plait.types import TensorSpec

__all__ = ["other", "pen"]

LLAVA = sub(
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)
#: (zoo's name, how the same model is spelt elsewhere, a line that the plan has of it)
SPELLINGS: list[tuple[str, Rename, str]] = [
    ("llava", LLAVA, "model.language_model.X of M is read as language_model.model.X: 38 tensors"),
    ("gemma3-vl", LLAVA, "model.language_model.X of M is read as language_model.model.X"),
    (
        "gemma3-vl", sub((r"^vision_tower\.", "vision_tower.vision_model.")),
        "vision_tower.vision_model.X of M is read as vision_tower.X",
    ),
    (
        "qwen2-vl", sub((r"^model\.", "model.language_model."), (r"^visual\.", "model.visual.")),
        "model.visual.X of M is read as visual.X",
    ),
    (
        "qwen3-vl", sub((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")),
        "visual.X of M is read as model.visual.X",
    ),
    (
        "idefics3", sub((r"^model\.text_model\.", "text_model."), (r"^model\.", "")),
        "X of M is read as model.X",
    ),
    ("gpt2", sub((r"^transformer\.", "")), "X of M is read as transformer.X"),
    ("bert", sub((r"^bert\.", "")), "X of M is read as bert.X"),
    (
        "bert", sub((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta")),
        "gamma of M is read as weight",
    ),
    ("gpt-neox", sub((r"^embed_out\.", "lm_head.")), "lm_head.X of M is read as embed_out.X: 1 tensor"),
    ("llama", sub((r"^model\.", "transformer.")), "transformer.X of M is read as model.X: 38 tensors"),
    ("llama", sub((r"^", "base_model.model.")), "base_model.model.X of M is read as X: 39 tensors"),
    ("whisper", sub((r"^model\.", "")), "X of M is read as model.X"),
    ("t5", sub((r"^", "transformer.")), "transformer.X of M is read as X"),
    ("mixtral", sub((r"\.block_sparse_moe\.", ".mlp.")), "mlp of M is read as block_sparse_moe"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rename", "line"), SPELLINGS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(SPELLINGS)]
)
def test_other_names(name: str, rename: Rename, line: str, pen: Path, other: Callable[..., Path]) -> None:
    """A model under other names merges to the same bytes as under the base's, either way round, and the plan tells the names."""
    base, plain, renamed = save(name, pen), other(name, "plain"), other(name, "M", rename)
    wanted = plait.merge(make.recipe("linear", base, plain))
    merge = plait.merge(make.recipe("linear", base, renamed))
    assert list(merge.specs) == list(wanted.specs)
    assert [n for n, x in merge if not same(x, wanted.read(n))] == []
    assert any(line in note.replace(str(renamed), "M") for note in merge.plan.notes), merge.plan.notes
    assert merge.plan.dropped == wanted.plan.dropped
    turned = plait.merge(make.recipe("linear", renamed, base))
    back = plait.merge(make.recipe("linear", plain, base))
    assert [n for n, x in back if not same(x, turned.read(rename(n) or ""))] == []


def test_old_and_new_layout_load(pen: Path, other: Callable[..., Path], tmp_path: Path) -> None:
    """A merge of an old and a new layout of a vision-language model loads in transformers, every tensor found, and runs."""
    new = other("llava", "new", LLAVA)
    plait.merge(make.recipe("linear", new, save("llava", pen))).save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", "llava"))).all()


def specs(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, TensorSpec]:
    return dict.fromkeys(names, TensorSpec("F32", shape))


def test_unclear_names_are_an_error(tmp_path: Path) -> None:
    """Where a tensor could be two of the base's, the merge stops and names them."""
    layer = make.tensors(0, layers=1)
    twice = {f"{side}.{name}": x.clone() for side in ("left", "right") for name, x in layer.items()}
    twice["model.embed_tokens.weight"] = twice["left.lm_head.weight"].clone()
    base = make.write(tmp_path / "base", twice, settings=make.config(layer))
    with pytest.raises(PlanError, match="it is not clear which tensors") as caught:
        plait.merge(make.recipe("linear", base, make.write(tmp_path / "one", layer)))
    assert "could be left.lm_head.weight or right.lm_head.weight" in str(caught.value)


def test_a_vision_layer_is_no_text_layer() -> None:
    """Layers of another modality are not taken for the base's, even where names and shapes agree."""
    audio = specs(*(f"audio_tower.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qkvo"))
    vision = specs(*(f"vision_tower.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qkvo"))
    assert spelt(audio, vision).names == {}


def test_part_of_a_layer_is_no_layer() -> None:
    """A stack that shares some names with the base's is another stack; with `partly` its tensors are matched all the same."""
    own = specs("a.layers.0.attn.q.weight", "a.layers.0.attn.extra.weight")
    base = specs("b.layers.0.attn.q.weight", "b.layers.0.attn.more.weight")
    assert spelt(own, base).names == {}
    assert spelt(own, base, partly=True).names == {"a.layers.0.attn.q.weight": "b.layers.0.attn.q.weight"}


WORDS = st.lists(st.sampled_from(["model", "language_model", "transformer", "base", "x"]), max_size=3).map(
    lambda words: "".join(f"{w}." for w in words)
)


@given(WORDS, WORDS)
def test_any_prefix(one: str, other: str) -> None:
    """Whatever words stand before the layers in either model, every tensor finds its own."""
    shapes = {"embed_tokens.weight": (9, 4), "norm.weight": (4,)}
    shapes |= {f"layers.{i}.{p}.weight": (4, 4) for i in range(2) for p in ("q", "k")}
    own = {one + n: TensorSpec("F32", shape) for n, shape in shapes.items()}
    base = {other + n: TensorSpec("F32", shape) for n, shape in shapes.items()}
    assert spelt(own, base).names == ({one + n: other + n for n in shapes} if one != other else {})


def test_the_stack_that_fits_wins() -> None:
    """A text model finds the text stack of several, by shapes and by the number of tensors that fit."""
    text = specs(*(f"model.layers.{i}.mlp.{p}.weight" for i in range(4) for p in ("up", "down")), "model.norm.weight")
    big = {f"text.{n}": s for n, s in text.items()}
    small = specs(*(f"other.layers.{i}.mlp.{p}.weight" for i in range(2) for p in ("up", "down")), "other.norm.weight")
    assert spelt(text, small | big).names == {n: f"text.{n}" for n in text}
