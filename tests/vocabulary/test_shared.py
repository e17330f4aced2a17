"""What lies beside realigned weights: the tokenizer's files, and ids in the configs that follow it; it loads and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

import make
import plait
import vocabularies
from plait.types import TensorSpec
from plait.vocabulary.read import Tokens
from plait.vocabulary.rows import fill_rows, own_rows
from plait.vocabulary.unite import unite
from plait.vocabulary.write import follow


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base, and a model whose tokenizer numbers other tokens, ends with a marker, and says so in its configs."""
    base = vocabularies.tokenizer("byte-level with gaps", vocabularies.PLAIN, 90)
    other = vocabularies.tokenizer("byte-level with gaps", vocabularies.FOREIGN, special=("<unk>", "</s>", "<s>"))
    other.add_special_tokens(["<|im_end|>"])
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    a = vocabularies.write(tmp_path / "a", base, 1, settings={**ids, "suppress_tokens": [base.token_to_id("q"), 2]})
    b = vocabularies.write(tmp_path / "b", other, 2, named={"eos_token": "<|im_end|>"})
    make.write_json(a / "generation_config.json", {**ids, "eos_token_id": [2], "temperature": 0.5})
    return [a, b]


def test_ids_stay_with_the_base(models: list[Path], tmp_path: Path) -> None:
    """With the base's vocabulary or a union, ids in both configs are the base's; its files are copied unless they changed."""
    for source in ("base", "union"):
        out = plait.merge(make.recipe("linear", *models, tokenizer_source=source)).save(tmp_path / source).out
        assert read(out / "generation_config.json") == read(models[0] / "generation_config.json")
        config, before = read(out / "config.json"), read(models[0] / "config.json")
        rows = vocabularies.rows_of(out)
        assert config == {**before, "vocab_size": len(rows)}
        assert ((out / "tokenizer.json").read_bytes() == (models[0] / "tokenizer.json").read_bytes()) == (
            source == "base"
        )


def test_row_6_special_ids(models: list[Path], tmp_path: Path) -> None:
    """With another model's tokenizer, roles have its ids, other ids go with their tokens, and what is gone leaves the lists."""
    a, b = models
    out = plait.merge(make.recipe("linear", a, b, tokenizer_source=str(b))).save(tmp_path / "out").out
    ids = Tokenizer.from_file(str(b / "tokenizer.json"))
    config, generation = read(out / "config.json"), read(out / "generation_config.json")
    for settings in (config, generation):
        assert settings["eos_token_id"] == ids.token_to_id("<|im_end|>")
        assert settings["bos_token_id"] == ids.token_to_id("<s>") == 2
        assert settings["pad_token_id"] is None
    assert generation["temperature"] == 0.5
    q = ids.token_to_id("q")
    assert config["suppress_tokens"] == [n for n in (q, ids.token_to_id("</s>")) if n is not None]
    assert (out / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()


def test_follow() -> None:
    """Ids move in nested configs and lists; other numbers, and ids that no token has, stay."""
    config = {
        "eos_token_id": [5, 6],
        "image_token_index": 5,
        "vocab_size": 5,
        "text_config": {"pad_token_id": 6, "num_hidden_layers": 5, "sep_token_id": None},
        "begin_suppress_tokens": [5, 6, 99],
    }
    assert follow(config, {5: 8, 6: None}, {}) == {
        "eos_token_id": [8],
        "image_token_index": 8,
        "vocab_size": 5,
        "text_config": {"pad_token_id": None, "num_hidden_layers": 5, "sep_token_id": None},
        "begin_suppress_tokens": [8, 99],
    }
    assert follow(config, {}, {"eos": 3, "sep": 4})["eos_token_id"] == 3
    assert follow(config, {}, {"sep": 4})["text_config"]["sep_token_id"] is None


def test_row_31_tokens_without_a_row(tmp_path: Path) -> None:
    """Tokens beyond the matrix are taken out of every file of the tokenizer, also where it is the one that is asked for."""
    made = vocabularies.tokenizer("unigram", vocabularies.PLAIN)
    n = made.get_vocab_size()
    made.add_special_tokens(["<|im_end|>", "<gone>"])
    a = vocabularies.write(tmp_path / "a", made, 1, rows=n + 1)
    b = vocabularies.write(tmp_path / "b", made, 2, rows=n + 2)
    decoder = {str(n + i): {"content": text, "special": True} for i, text in enumerate(("<|im_end|>", "<gone>"))}
    make.write_json(
        a / "tokenizer_config.json",
        {"added_tokens_decoder": decoder, "pad_token": "<gone>", "additional_special_tokens": ["<gone>", "<|im_end|>"]},
    )
    make.write_json(a / "added_tokens.json", {"<|im_end|>": n, "<gone>": n + 1})
    out = plait.merge(make.recipe("linear", a, b, tokenizer_source=str(a))).save(tmp_path / "out").out
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab_size() == n + 1
    settings = read(out / "tokenizer_config.json")
    assert settings == {"added_tokens_decoder": {str(n): decoder[str(n)]}, "additional_special_tokens": ["<|im_end|>"]}
    assert read(out / "added_tokens.json") == {"<|im_end|>": n}
    assert read(out / "config.json")["vocab_size"] == n + 1


def test_other_forms_are_left_out(models: list[Path], tmp_path: Path) -> None:
    """Files that hold the vocabulary in an older form are not copied beside a tokenizer.json that says more than they."""
    (models[0] / "vocab.json").write_text("{}")
    merge = plait.merge(make.recipe("linear", *models, tokenizer_source="union"))
    assert not (merge.save(tmp_path / "out").out / "vocab.json").exists()
    assert any("vocab.json" in note and "left out" in note for note in merge.plan.notes)


@pytest.mark.parametrize("kind", ["byte-level", "byte-level with gaps", "sentencepiece", "unigram"])
@pytest.mark.parametrize("source", ["union", "b"])
def test_loads_in_transformers(kind: str, source: str, tmp_path: Path) -> None:
    """transformers loads tokenizer and model, gives the ids of the tokenizers library, all of which have rows, and generates."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = vocabularies.tokenizer(kind, vocabularies.FOREIGN)
    other.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    a = vocabularies.write(tmp_path / "a", vocabularies.tokenizer(kind, vocabularies.PLAIN, 90), 1)
    b = vocabularies.write(tmp_path / "b", other, 2, named={"eos_token": "<|im_end|>"})
    recipe = make.recipe("linear", a, b, tokenizer_source=str(b) if source == "b" else source)
    out = plait.merge(recipe).save(tmp_path / "out").out
    tokenizer = AutoTokenizer.from_pretrained(out)
    model, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values())
    text = "the lazy курочка<|im_end|> weights (x_1"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert (
        ids[0].tolist() == Tokenizer.from_file(str(out / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    )
    assert len(tokenizer) <= model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert int(ids.max()) < model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    made = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(made[0])


def test_large_vocabularies() -> None:
    """150,000 tokens are united with and matched to 150,000 others, with indices that are right."""
    base = Tokens(Path("a"), {f"t{n}": n for n in range(150_000)}, {})
    other = Tokens(Path("b"), {f"t{3 * n}": 149_999 - n for n in range(150_000)}, {})
    made = unite(base, [other]).tokens
    own = {i: own_rows(made, tokens, 150_016, 150_016) for i, tokens in enumerate((base, other))}
    fill = fill_rows(own, 0, (), np.arange(150_016) < 150_000)
    assert made is base
    assert own[1][3] == 149_998
    assert (own[1] != -1).sum() == 50_000
    assert (fill.model[:150_000] == 0).all()


def test_few_reads(tmp_path: Path) -> None:
    """Rows that lie together are read at once, however the output orders them."""
    from plait.checkpoint import InMemory
    from plait.vocabulary.realign import Matrix

    matrix = torch.arange(40_000.0).reshape(10_000, 4)
    reads = []

    class Counting(InMemory):
        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            reads.append(rows)
            return super().read(name, rows)

    index = np.random.default_rng(0).permutation(10_000)[:64]
    source = Matrix(Counting({"x": matrix}), "x")
    assert source.spec == TensorSpec("F32", (10_000, 4))
    assert torch.equal(source.rows(index), matrix[torch.from_numpy(index)])
    assert len(reads) < 64
    reads.clear()
    assert torch.equal(source.rows(np.arange(100, 164)), matrix[100:164])
    assert reads == [(100, 164)]


def test_nested(models: list[Path], tmp_path: Path) -> None:
    """A merge with a united vocabulary, used as a model, has that vocabulary, with the same bytes as from a directory."""
    inner = make.recipe("linear", *models, tokenizer_source="union")
    there = plait.merge(inner).save(tmp_path / "inner").out
    merged = []
    (tmp_path / "inner.yml").write_text(json.dumps(inner))
    for first in (tmp_path / "inner.yml", there):
        recipe = make.recipe("linear", models[1], base=first, tokenizer_source="base", chat_template="auto")
        merged.append(plait.merge(recipe).save(tmp_path / f"out{len(merged)}").out)
    assert make.hashes(merged[0]) == make.hashes(merged[1])
    assert make.hashes(merged[0], "tokenizer*") == make.hashes(merged[1], "tokenizer*")
    assert vocabularies.rows_of(merged[0]).keys() == vocabularies.rows_of(there).keys()


def test_provenance_tells_whose(models: list[Path], tmp_path: Path) -> None:
    """The provenance says of each file beside the weights whose it is."""
    recipe = make.recipe("linear", *models, tokenizer_source=str(models[1]))
    told = read(plait.merge(recipe).save(tmp_path / "out").out / "plait_provenance.json")["side_files"]
    assert told["tokenizer.json"] == told["tokenizer_config.json"] == str(models[1])
    assert told["generation_config.json"] == str(models[0])


@pytest.mark.parametrize("text", ["", " ", "\n", "w", "\u0000", "a" * 5000, "🧶", "\ud83e"])
def test_odd_tokens(text: str, models: list[Path], tmp_path: Path) -> None:
    """A token of any text is added and can be produced, or is refused before the work."""
    recipe = make.recipe(
        "linear", *models, tokenizer={"source": "base", "tokens": {text: {"source": {"kind": "zero"}}}}
    )
    errors = plait.check(recipe)
    if not errors:
        out = plait.merge(recipe).save(tmp_path / "out").out
        made = Tokenizer.from_file(str(out / "tokenizer.json"))
        assert made.token_to_id(text) in made.encode(text, add_special_tokens=False).ids


def test_a_model_without_tokens(tmp_path: Path) -> None:
    """A tokenizer that is asked for of models without a token embedding is refused, with the recipe's line."""
    paths = []
    for seed, name in enumerate("ab"):
        made = {n: x for n, x in make.tensors(seed).items() if "embed" not in n and "head" not in n}
        paths.append(make.write(tmp_path / name, {**made, "model.embed_tokens.weight": torch.ones(16, 8)}))
        save_file(made, paths[-1] / "model.safetensors", {"format": "pt"})
    (error,) = plait.check(make.recipe("linear", *paths, tokenizer_source="union"))
    assert "has no token embedding" in str(error)


def test_a_tokenizer_that_is_not_there(tmp_path: Path, refused: Callable[..., str]) -> None:
    """The model whose tokenizer is asked for has none; or it is of an older kind, and has tokens without rows: no OUT."""
    paths = [make.model(tmp_path / name, seed) for seed, name in enumerate("abc")]
    (paths[2] / "tokenizer.json").unlink()
    for models, source, said in (
        (paths[:2], str(paths[2]), "c has no tokenizer that can be read"),
        (paths[2:], "base", "holds tokens without a row in the model"),
    ):
        path = make.write_json(tmp_path / "r.yml", make.recipe("linear", *models, tokenizer={"source": source}))
        refused(said, "merge", path, tmp_path / "out")
        (paths[2] / "vocab.txt").write_text("\n".join(f"w{i}" for i in range(24)))
