"""What a comparison says, on models that were made so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import make
from loras import lora
from plait.diff import compare
from plait.diff.facts import facts


def said(*models: Path, about: str) -> list[dict[str, Any]]:
    return [v for v in facts(compare(*models))["verdicts"] if v["about"] == about]


def moved(made: make.Tensors, seed: int, size: float = 0.01) -> make.Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {n: x + size * torch.randn(x.shape, generator=generator).to(x.dtype) for n, x in made.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora(tmp_path: Path, dtype: torch.dtype) -> None:
    """A LoRA of rank 3 merged into some modules is recognised, with its rank and modules, in float32 and rounded to bfloat16."""
    base = make.tensors(0, hidden=64, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    tuned = dict(base)
    for name, x in base.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            b, a = (torch.randn(n, 3, generator=generator) for n in x.shape)
            tuned[name] = (x.float() + 0.03 * b @ a.mT).to(dtype)
    folders = [make.write(tmp_path / name, made) for name, made in (("base", base), ("tuned", tuned))]
    [verdict] = said(*folders, about="lora")
    assert verdict["says"] == "tuned is base with a LoRA of rank 3 in q_proj, v_proj"
    assert not said(*folders, about="dtype")


def test_no_lora(tmp_path: Path) -> None:
    """Full training, and training of all entries of some tensors, is not taken for a LoRA."""
    base = make.tensors(0, hidden=64)
    full = moved(base, 1)
    some = {n: full[n] if "q_proj" in n else x for n, x in base.items()}
    folders = [make.write(tmp_path / n, made) for n, made in (("base", base), ("full", full), ("some", some))]
    assert said(*folders, about="lora") == []


def test_unrelated(tmp_path: Path) -> None:
    """Models that began from different random weights are told apart from fine-tunes."""
    base = make.tensors(0, hidden=64)
    folders = [
        make.write(tmp_path / "base", base),
        make.write(tmp_path / "tuned", moved(base, 1)),
        make.write(tmp_path / "other", make.tensors(5, hidden=64)),
    ]
    verdicts = {v["says"].split(":")[0]: v for v in said(*folders, about="merging")}
    assert verdicts["tuned"]["mark"] == "good"
    assert verdicts["other"]["mark"] == "bad"
    assert "unrelated" in verdicts["other"]["says"]


def test_base(tmp_path: Path) -> None:
    """The base is found among its fine-tunes, wherever it stands; a mean of models is told as what lies between them."""
    base = make.tensors(0, hidden=64)
    tuned = [moved(base, seed) for seed in (1, 2, 3)]
    folders = [make.write(tmp_path / name, made) for name, made in zip("abc", tuned, strict=True)]
    root = make.write(tmp_path / "root", base)
    assert said(root, *folders, about="base")[0]["says"] == "root is the base of the others"
    assert said(folders[0], root, *folders[1:], about="base")[0]["says"].startswith(
        "root is the base of the others, or in the middle"
    )
    assert said(*folders, about="base")[0]["says"].startswith("none of them is the base of the others")
    mean = make.write(tmp_path / "mean", {n: (x + tuned[1][n]) / 2 for n, x in tuned[0].items()})
    assert "mean lies between" in said(mean, *folders[:2], about="base")[0]["says"]


def test_two_models(tmp_path: Path) -> None:
    """Of two models, weights do not tell the base; a chat template or a card does."""
    base = make.tensors(0, hidden=64)
    folders = [make.write(tmp_path / name, made) for name, made in (("one", base), ("two", moved(base, 1)))]
    assert "weights do not tell" in said(*folders, about="base")[0]["says"]
    (folders[1] / "README.md").write_text("---\nbase_model: org/one\n---\n# two\n")
    (folders[1] / "chat_template.jinja").write_text("{{ messages }}")
    [verdict] = said(*folders, about="base")
    assert verdict["says"] == "one is likely the base of two"
    assert "the card of two names it" in verdict["because"]
    assert "only two has a chat template" in verdict["because"]


def test_dtype(tmp_path: Path) -> None:
    """A copy in another dtype is told as what it is, either way round, and an equal one too."""
    wide = make.tensors(0, hidden=16)
    folders = [
        make.write(tmp_path / "wide", wide),
        make.write(tmp_path / "narrow", {n: x.bfloat16() for n, x in wide.items()}),
        make.write(tmp_path / "copy", wide),
    ]
    assert said(*folders[:2], about="dtype")[0]["because"] == "bfloat16 instead of float32, every entry rounded"
    assert said(folders[1], folders[0], about="dtype")
    assert said(folders[0], folders[2], about="same")[0]["says"] == "copy: the same weights as wide"


def test_conflict(tmp_path: Path) -> None:
    """Deltas that are opposed, and deltas that are nearly the same, are told."""
    base, tuned = make.tensors(0, hidden=64), moved(make.tensors(0, hidden=64), 1)
    opposed = {n: 2 * x - tuned[n] for n, x in base.items()}
    alike = [{n: x + moved(base, seed, 0.004)[n] - base[n] for n, x in tuned.items()} for seed in (2, 3)]
    named = (("root", base), ("a", tuned), ("opposed", opposed), ("b", alike[0]), ("c", alike[1]))
    root, a, other, b, c = (make.write(tmp_path / name, made) for name, made in named)
    assert any("a and opposed pull against" in v["says"] for v in said(root, a, other, about="conflict"))
    assert any("b and c changed nearly the same" in v["says"] for v in said(root, b, c, about="conflict"))


def test_vocabulary(tmp_path: Path) -> None:
    """Moved and added tokens, another way to cut, another special token and another rope are told."""
    made = make.tensors(0, hidden=16)
    one, two = (make.write(tmp_path / name, made) for name in ("one", "two"))
    words = make.tokenizer(16)
    vocab = words["model"]["vocab"]
    vocab["w3"], vocab["w4"] = 4, 3
    words["pre_tokenizer"] = {"type": "Whitespaces"}
    words["added_tokens"] = [{"id": 15, "content": "<pad>"}]
    make.write_json(two / "tokenizer.json", words)
    make.write_json(two / "tokenizer_config.json", {"unk_token": "<unk>", "pad_token": {"content": "<pad>"}})
    make.write_json(two / "config.json", make.config(made, rope_theta=1e6))
    data = facts(compare(one, two))
    [words_of_two] = data["vocabulary"]
    assert words_of_two["tokens"] == {"same_id": 14, "other_id": 2, "only_in_the_first": 0, "only_in_this": 1}
    assert words_of_two["special_tokens"] == {"pad_token": [None, "<pad>"]}
    assert words_of_two["settings"] == {"rope_theta": [None, 1e6]}
    told = " ".join(v["says"] for v in data["verdicts"] if v["mark"] == "bad")
    assert "2 tokens of two have other ids" in told
    assert "cuts text in another way" in told
    assert "rope_theta" in told


def test_longer_vocabulary(tmp_path: Path) -> None:
    """Of embeddings of different length the rows that all have are compared, and that is told."""
    made = make.tensors(0, hidden=16)
    rows = torch.ones(4, 16)
    longer = {n: torch.cat([x, rows]) if n.startswith(("model.embed", "lm_head")) else x for n, x in made.items()}
    data = facts(compare(make.write(tmp_path / "one", made), make.write(tmp_path / "two", longer)))
    assert data["compared"]["first_rows_only"] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert data["total"]["change"] == [0.0]
    assert any("length" in v["says"] for v in data["verdicts"])


def test_missing(tmp_path: Path) -> None:
    """A model with other layers and one of another size are compared as far as they can be, and the rest is told."""
    two = make.model(tmp_path / "two", 0)
    three = make.model(tmp_path / "three", 0, layers=3)
    verdict = said(two, three, about="tensors")[0]
    assert (verdict["mark"], verdict["says"]) == ("bad", "two lacks 9 tensors that another has")
    tied = make.model(tmp_path / "tied", 0, tied=True)
    assert "tied to the embedding" in said(two, tied, about="tensors")[0]["says"]


def test_other_names(tmp_path: Path) -> None:
    """A model whose tensors have another prefix is compared all the same, and that is told."""
    made = make.tensors(0, hidden=16, tied=True)
    one = make.write(tmp_path / "one", made)
    two = make.write(tmp_path / "two", made)
    save_file({n.removeprefix("model."): x for n, x in moved(made, 1).items()}, two / "model.safetensors")
    data = facts(compare(one, two))
    assert data["compared"]["tensors"] == len(made)
    assert any("is read as model" in v["says"] for v in data["verdicts"])


def test_adapter(tmp_path: Path) -> None:
    """A base with an adapter is recognised as such, with the adapter's rank."""
    made = make.tensors(0, hidden=32)
    base = make.write(tmp_path / "base", made)
    adapter = lora(tmp_path / "adapter", made, rank=4)
    [verdict] = [v for v in facts(compare(base, f"{base}+{adapter}"))["verdicts"] if v["about"] == "lora"]
    assert "a LoRA of rank 4 in" in verdict["says"]


def test_recipe_named(tmp_path: Path) -> None:
    """A merge that has not been written is compared under the name of its recipe."""
    base = make.tensors(0, hidden=16)
    folders = [
        make.write(tmp_path / n, made) for n, made in (("base", base), ("a", moved(base, 1)), ("b", moved(base, 2)))
    ]
    path = tmp_path / "mean.yml"
    path.write_text(yaml.safe_dump(make.recipe("linear", *folders[1:])))
    data = facts(compare(folders[1], folders[2], path))
    assert [m["name"] for m in data["models"]] == ["a", "b", "mean.yml"]
    assert any("mean.yml lies between" in v["says"] for v in data["verdicts"])
