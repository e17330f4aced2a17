"""Rows by token: the rules of a fill row, against plain loops; the view is a checkpoint like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

import loras
import make
import plait
import vocabularies
from plait.checkpoint import InMemory
from plait.checkpoint.dtypes import torch_dtype
from plait.errors import PlanError
from plait.plan import Plan
from plait.testing.checkpoints import check, same
from plait.types import TensorSpec
from plait.vocabulary.realign import Gathered, Matrix, Realigned
from plait.vocabulary.rows import AVERAGE, MEAN, NONE, ZERO, Origins, fill_rows

NAMES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base, a model with the base's tokenizer, and two with another that has markers and a padded matrix."""
    base = vocabularies.tokenizer("byte-level with gaps", vocabularies.PLAIN, 90)
    other = vocabularies.tokenizer("byte-level with gaps", vocabularies.FOREIGN)
    other.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    rows = other.get_vocab_size() + 5
    return [
        vocabularies.write(tmp_path / "base", base, 1),
        vocabularies.write(tmp_path / "a", base, 2),
        vocabularies.write(tmp_path / "b", other, 3, rows=rows, named={"eos_token": "<|im_end|>"}),
        vocabularies.write(tmp_path / "c", other, 4, rows=rows, named={"eos_token": "<|im_end|>"}),
    ]


def weighted(models: list[Path], base: Path | None, **tokenizer: Any) -> dict[str, Any]:
    recipe = make.recipe("linear", *models, base=base, dtype="float32", tokenizer=tokenizer, parameters={})
    for weight, entry in enumerate(recipe["models"]):
        entry["parameters"] = {"weight": weight + 1.0}
    return recipe


def row(token: str, name: str, folders: list[Path], base: Path | None) -> list[np.ndarray]:
    """The row of each model for a token, by the rules, in plain loops."""
    own = [vocabularies.rows_of(folder, name).get(token) for folder in folders]
    held = [x.double().numpy() for x in own if x is not None]
    of_base = own[folders.index(base)] if base in folders else None
    if not held:
        fill = np.zeros(8)
    elif len(held) > 1 and of_base is not None:
        fill = of_base.double().numpy()
    else:
        fill = np.mean(held, axis=0)
    return [fill if x is None else x.double().numpy() for x in own]


@pytest.mark.parametrize("source", ["union", "base", "b"])
@pytest.mark.parametrize("with_base", [True, False])
def test_rules(source: str, with_base: bool, models: list[Path], tmp_path: Path) -> None:
    """Each row is the weighted mean of the models' rows for its token; fills are the only one's, the base's, the mean."""
    base, *others = models
    asked = str(models[2]) if source == "b" else source
    folders = [*others, base]
    merge = plait.merge({**weighted(folders, base if with_base else None, source=asked)})
    out = merge.save(tmp_path / "out").out
    for name in NAMES:
        merged = vocabularies.rows_of(out, name)
        assert len(merged) > 80
        for token, x in merged.items():
            rows = row(token, name, folders, base if with_base else None)
            wanted = sum(w * r for w, r in zip((1, 2, 3, 4), rows, strict=True)) / 10
            np.testing.assert_allclose(x.numpy(), wanted, rtol=2e-6, atol=1e-8, err_msg=token)


def test_token_rules(models: list[Path], tmp_path: Path) -> None:
    """`tokens` gives a token the row of a model, of another token by text or id, or zeros; forced, to all models."""
    base, a, b, _ = models
    rules = {
        "<s>": {"source": str(b), "force": True},
        "</s>": {"source": {"kind": "model_token", "model": str(a), "token": "<s>"}, "force": True},
        "<new>": {"source": {"kind": "model_token", "model": str(b), "token_id": 7}},
        "<unk>": {"source": {"kind": "zero"}, "force": True},
        "<tool>": {"source": {"kind": "zero"}},
        "<|im_end|>": {"source": str(b)},
    }
    recipe = make.recipe("linear", a, b, base, dtype="float32", tokenizer={"source": "union", "tokens": rules})
    out = plait.merge(recipe).save(tmp_path / "out").out
    for name in NAMES:
        merged, of_a, of_b = (vocabularies.rows_of(folder, name) for folder in (out, a, b))
        seventh = load_file(b / "model.safetensors")[name][7]
        wanted = {
            "<s>": of_b["<s>"],
            "</s>": of_a["<s>"],
            "<new>": seventh,
            "<unk>": seventh * 0,
            "<tool>": seventh * 0,
        }
        for token, x in {**wanted, "<|im_end|>": of_b["<|im_end|>"]}.items():
            torch.testing.assert_close(merged[token], x, rtol=2e-7, atol=0)


@pytest.mark.parametrize("with_base", [True, False])
def test_row_32_force_without_source(with_base: bool, models: list[Path], tmp_path: Path) -> None:
    """`force` without `source` gives all models the row that the general rules give to one without the token."""
    base, a, b, _ = models
    rules = {token: {"force": True} for token in ("<s>", "<|im_start|>", "<nobody has it>")}
    recipe = make.recipe("linear", a, b, base, dtype="float32", tokenizer={"source": "union", "tokens": rules})
    out = plait.merge({**recipe, **({"base_model": str(base)} if with_base else {})}).save(tmp_path / "out").out
    for name in NAMES:
        merged, *held = (vocabularies.rows_of(folder, name) for folder in (out, base, a, b))
        average = sum(x["<s>"].double() for x in held) / 3
        torch.testing.assert_close(
            merged["<s>"], held[0]["<s>"] if with_base else average.float(), rtol=2e-7, atol=1e-9
        )
        torch.testing.assert_close(merged["<|im_start|>"], held[2]["<|im_start|>"], rtol=2e-7, atol=0)
        assert not merged["<nobody has it>"].any()


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"source": {"kind": "model_token", "model": "B", "token": "nowhere"}}, "the token 'nowhere'"),
        ({"source": {"kind": "model_token", "model": "B", "token_id": 99999}}, "an id below"),
        ({"source": "B"}, "no row for the source"),
    ],
)
def test_impossible_rules(rule: dict[str, Any], told: str, models: list[Path], tmp_path: Path) -> None:
    """A rule that names a token or id that the model lacks is refused before the work, with the recipe's line."""
    recipe = weighted(models[:3], models[0], source="union", tokens={"<new>": rule})
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe).replace("B", str(models[2])))
    (error,) = plait.check(path)
    assert told in str(error)
    assert error.where is not None
    assert error.where.line


def test_padding(models: list[Path], tmp_path: Path) -> None:
    """`pad_to_multiple_of` rounds the rows up, or a padded matrix down; a new row is the mean of the model's others."""
    base, a, *_ = models
    tokens = len(vocabularies.rows_of(base))
    for multiple in (64, 1):
        recipe = make.recipe("linear", a, base, tokenizer={"source": "base", "pad_to_multiple_of": multiple})
        merge = plait.merge(recipe)
        out = merge.save(tmp_path / str(multiple)).out
        rows = -(-tokens // multiple) * multiple
        assert merge.config["vocab_size"] == rows
        for name in NAMES:
            matrix = load_file(out / "model.safetensors")[name]
            both = [load_file(folder / "model.safetensors")[name].double() for folder in (a, base)]
            assert len(matrix) == rows
            if multiple == 64:
                torch.testing.assert_close(
                    matrix[tokens:].double(), ((both[0].mean(0) + both[1].mean(0)) / 2).expand(rows - tokens, -1)
                )


def test_padded_differently(tmp_path: Path) -> None:
    """Models with the same tokens in matrices of different length merge without a tokenizer in the recipe; nothing is cut."""
    made = vocabularies.tokenizer("unigram", vocabularies.PLAIN)
    n = made.get_vocab_size()
    short, long = (
        vocabularies.write(tmp_path / "short", made, 1),
        vocabularies.write(tmp_path / "long", made, 2, rows=n + 7),
    )
    for recipe in (make.recipe("linear", short, long), make.recipe("task_arithmetic", long, base=short)):
        merge = plait.merge(recipe)
        assert any("padded differently" in note for note in merge.plan.notes)
        assert merge.config["vocab_size"] == n + 7
        for name in NAMES:
            a, b = (load_file(folder / "model.safetensors")[name] for folder in (short, long))
            whole = (a + b[:n]) / 2 if recipe["merge_method"] == "linear" else b[:n]
            torch.testing.assert_close(merge.read(name), torch.cat([whole, b[n:]]), rtol=1e-6, atol=1e-7)
    merge = plait.merge(make.recipe("linear", short, base=long, tokenizer_source="base"))
    assert merge.specs[NAMES[0]].shape == (n + 7, 8)


def test_other_lengths_are_refused(models: list[Path]) -> None:
    """Matrices of different length over different tokens are refused without a tokenizer in the recipe, with the mend."""
    with pytest.raises(PlanError, match=r"tokenizer: \{source: base\}"):
        plait.merge(make.recipe("linear", models[0], models[2]))


def test_same_length_other_tokens(tmp_path: Path) -> None:
    """Tokenizers that differ where rows are merged by their number are told of, and are no error."""
    a, b = make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)
    assert not any("differ in" in note for note in plait.merge(make.recipe("linear", a, b)).plan.notes)
    other = make.tokenizer(16)
    other["model"]["vocab"] |= {"w3": 4, "w4": 3}
    make.write_json(b / "tokenizer.json", other)
    merge = plait.merge(make.recipe("linear", a, b))
    assert any("differ in 2 ids" in note for note in merge.plan.notes)
    merge = plait.merge(make.recipe("linear", a, b, tokenizer_source="base"))
    both = [vocabularies.rows_of(folder)["w3"] for folder in (a, b)]
    torch.testing.assert_close(merge.read(NAMES[0])[3], (both[0] + both[1]) / 2)


def test_slices(tmp_path: Path) -> None:
    """With slices, the embedding's rows come of the first slice's models and the head's of the last one's."""
    base = vocabularies.tokenizer("unigram", vocabularies.PLAIN)
    marked = Tokenizer.from_str(base.to_str())
    marked.add_tokens(["<x>"])
    a, b = vocabularies.write(tmp_path / "a", base, 1), vocabularies.write(tmp_path / "b", marked, 2)
    slices = [{"sources": [{"model": str(m), "layer_range": [i, i + 1]}]} for i, m in enumerate((a, b))]
    recipe = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    merge = plait.merge(recipe)
    head = merge.read(NAMES[1])
    assert torch.equal(head[-1], vocabularies.rows_of(b, NAMES[1])["<x>"])
    assert torch.equal(head[:-1], load_file(b / "model.safetensors")[NAMES[1]][:-1])
    assert not merge.read(NAMES[0])[-1].any()  # no model of the first slice has it
    assert any("their rows are zero" in note for note in merge.plan.notes)


def test_tied_and_untied(tmp_path: Path) -> None:
    """A model whose head is its embedding gives the rows of the head from there."""
    base = vocabularies.tokenizer("unigram", vocabularies.PLAIN)
    marked = Tokenizer.from_str(base.to_str())
    marked.add_tokens(["<x>"])
    untied = vocabularies.write(tmp_path / "untied", base, 1)
    tied = vocabularies.write(tmp_path / "tied", marked, 2, tied=True)
    merge = plait.merge(make.recipe("linear", untied, tied, tokenizer_source="union"))
    for name in NAMES:
        torch.testing.assert_close(merge.read(name)[-1], vocabularies.rows_of(tied)["<x>"])


def test_same_bytes(models: list[Path], tmp_path: Path) -> None:
    """Threads change no byte of realigned tensors, and any rows of them are those of the whole."""
    merge = plait.merge(weighted([*models[1:], models[0]], models[0], source="union", pad_to_multiple_of=64))
    outs = [merge.save(tmp_path / str(n), threads=n).out for n in (1, 4)]
    assert make.hashes(outs[0]) == make.hashes(outs[1])
    for name in NAMES:
        whole = merge.read(name)
        assert same(merge.read(name, (5, 99)), whole[5:99])
        assert same(whole, load_file(outs[0] / "model.safetensors")[name])


def test_plan_and_explain(models: list[Path]) -> None:
    """The plan says of each realigned tensor how many rows are a model's own and whose the others are; reading is lazy."""
    plan: Plan = plait.merge(weighted([*models[1:], models[0]], models[0], source="union")).plan
    note = plan.step(NAMES[0]).note or ""
    assert note.startswith("rows by token: ")
    assert f"{models[2]}: " in note
    assert f"of {models[0]}" in note
    assert "the average of the models that have the token" in note
    assert plan.step("model.norm.weight").note is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_view_is_a_checkpoint(data: st.DataObject) -> None:
    """A realigned tensor of any origins keeps the contract of a checkpoint, and its rows are those that the origins name."""
    code = data.draw(st.sampled_from(["F32", "BF16", "F64"]))
    held = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    columns = data.draw(st.sampled_from([(), (3,), (20000,)]))
    rows = data.draw(st.integers(1, 12))
    tensors = [torch.randn(n, *columns, generator=torch.Generator().manual_seed(n)).to(torch_dtype(code)) for n in held]
    number = st.integers(0, len(held) - 1)
    origin = st.one_of(
        number.flatmap(lambda m: st.tuples(st.just(m), st.integers(0, held[m] - 1))), st.just((ZERO, NONE))
    )
    drawn = data.draw(st.lists(origin, min_size=rows, max_size=rows))
    sources = {m: Matrix(InMemory({"x": x}), "x") for m, x in enumerate(tensors)}
    origins = Origins(np.array([m for m, _ in drawn]), np.array([r for _, r in drawn]))
    gathered = Gathered(TensorSpec(code, (rows, *columns)), code, 0, origins, sources, ())
    view = Realigned(InMemory({"x": tensors[0], "y": torch.ones(2)}), {"x": gathered}, {})
    assert check(view) == []
    wanted = [tensors[m][r] if m >= 0 else torch.zeros(columns, dtype=tensors[0].dtype) for m, r in drawn]
    assert same(view.read("x"), torch.stack(wanted))
    assert view.stored["x"] == sum(m >= 0 for m, _ in drawn) * tensors[0][0].nbytes


@pytest.mark.parametrize("shape", [(1, 6), (3, 6)])
def test_last_axis(shape: tuple[int, int]) -> None:
    """A tensor that the vocabulary spans along its last axis is gathered by columns, with averages and means."""
    a, b = torch.randn(shape), torch.randn(shape)
    own = np.array([0, 1, NONE, 5, NONE, NONE])
    origins = Origins(np.array([0, 1, ZERO, AVERAGE, MEAN, 1]), np.array([4, 2, NONE, NONE, NONE, 0]))
    sources = {0: Matrix(InMemory({"x": a}), "x"), 1: Matrix(InMemory({"x": b}), "x")}
    made = Gathered(TensorSpec("F32", shape), "F32", 1, origins, sources, ((0, own), (1, own)))
    view = Realigned(InMemory({"x": a}), {"x": made}, {})
    assert check(view) == []
    first = [a[:, 4], b[:, 2], a[:, 0] * 0, (a[:, 5] + b[:, 5]) / 2, b[:, 0]]
    wanted = torch.stack([*first[:4], torch.stack(first).mean(0), first[4]], 1)
    torch.testing.assert_close(view.read("x"), wanted)


@settings(max_examples=200, deadline=None)
@given(
    own=st.lists(st.lists(st.sampled_from([NONE, 3, 7]), min_size=4, max_size=4), min_size=1, max_size=4),
    base=st.integers(-1, 3),
)
def test_fill_rows(own: list[list[int]], base: int) -> None:
    """The fill row is the only one, else the base's, else the average; nobody's is zero, and of padding the mean."""
    tokens = np.array([True, True, False, True])
    models = {m: np.array(rows) for m, rows in enumerate(own)}
    found = fill_rows(models, base if base in models else None, (), tokens)
    for r in range(4):
        has = [m for m in models if models[m][r] != NONE]
        wanted: tuple[int, int]
        if not has:
            wanted = (ZERO if tokens[r] else MEAN, NONE)
        elif len(has) == 1 or base in has:
            m = has[0] if len(has) == 1 else base
            wanted = (m, models[m][r])
        else:
            wanted = (AVERAGE, NONE)
        assert (found.model[r], found.row[r]) == wanted


def test_over_an_adapter(tmp_path: Path) -> None:
    """A model with an adapter is realigned as what the adapter makes of it, and the output has the dtype of the files."""
    base = vocabularies.tokenizer("unigram", vocabularies.PLAIN)
    marked = Tokenizer.from_str(base.to_str())
    marked.add_tokens(["<x>"])
    a = vocabularies.write(tmp_path / "a", base, 1, dtype=torch.bfloat16)
    b = vocabularies.write(tmp_path / "b", marked, 2, dtype=torch.bfloat16)
    adapter = loras.lora(tmp_path / "lora", load_file(b / "model.safetensors"))
    merge = plait.merge(make.recipe("linear", a, f"{b}+{adapter}", tokenizer_source="union"))
    assert {spec.dtype for spec in merge.specs.values()} == {"BF16"}
    torch.testing.assert_close(merge.read(NAMES[0])[-1], vocabularies.rows_of(b)["<x>"], rtol=0, atol=0)
    name = "model.layers.0.mlp.up_proj.weight"
    mean = (plait.open(a).read(name).double() + plait.open(f"{b}+{adapter}").read(name).double()) / 2
    assert torch.equal(merge.read(name), mean.to(torch.bfloat16))
