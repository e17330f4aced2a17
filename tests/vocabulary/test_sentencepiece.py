"""SentencePiece models: the tokenizer.json that is made of one cuts text as the sentencepiece library does."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import make
import plait
from plait.errors import ModelError
from plait.export.tokens import vocabulary
from plait.vocabulary.read import Tokens, read_tokens
from plait.vocabulary.unite import extend, loaded

LINES = [f"the river {i} runs down to the sea, and def f(x): return x+{i} for bread; 2026-11-{i}" for i in range(200)]
LINES += ["  two  spaces    four", "Wasser läuft naß weit weg", "a < b > c <x>"] * 5
TEXTS = [
    "",
    " ",
    "    ",
    "the river runs",
    " leading",
    "trailing  ",
    "two  spaces   three    four     five",
    "2026-11-25 1234567890",
    "emoji 🎉🎉, 字 and ﬁ ½ ａｂｃ",
    "def f(x):\n\treturn x+1\n\n    for",
    "Wasser läuft naß",
    "<0x41> ▁the",
]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "split_digits": True}
    | {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    | {"allow_whitespace_only_pieces": True},
    "gemma": {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity"}
    | {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "user_defined_symbols": ["<x>", "▁▁", "▁▁▁▁"]},
    "t5": {"model_type": "unigram", "vocab_size": 120, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "unigram with bytes": {"model_type": "unigram", "vocab_size": 400, "byte_fallback": True},
    "plain bpe": {"model_type": "bpe", "vocab_size": 140},
}


@cache
def trained(**settings: Any) -> bytes:
    out = io.BytesIO()
    settings = {**settings, "user_defined_symbols": list(settings.get("user_defined_symbols", ()))}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, hard_vocab_limit=False, minloglevel=2, **settings
    )
    return out.getvalue()


def model(kind: str, **more: Any) -> bytes:
    settings = KINDS[kind] | more
    return trained(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def read(folder: Path, raw: bytes, **settings: Any) -> Tokens:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(raw)
    if settings:
        make.write_json(folder / "tokenizer_config.json", settings)
    tokens = read_tokens(folder)
    assert tokens is not None
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_as_sentencepiece(kind: str, tmp_path: Path) -> None:
    """Spaces, digits, emoji, code: the ids are those of the sentencepiece library, and so is the text made of them."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model(kind))
    tokens = read(tmp_path, model(kind))
    assert tokens.ids == {oracle.id_to_piece(n): n for n in range(len(oracle))}
    made, draw = loaded(tokens), random.Random(0)
    parts = [*"thervasdfx(1+2): ;\n\täß🎉", "  ", "river", " return", "the ", *(["<x>"] if kind == "gemma" else [])]
    texts = TEXTS + ["".join(draw.choices(parts, k=draw.randrange(1, 24))) for _ in range(300)]
    if kind == "unigram with bytes":  # a text that looks like the name of a byte is one there
        texts.remove("<0x41> ▁the")
    for text in texts:
        ids = oracle.encode(text)
        assert made.encode(text).ids == ids, text
        if oracle.unk_id() not in ids:
            assert made.decode(ids) == oracle.decode(ids), text


def test_special_tokens(tmp_path: Path) -> None:
    """Special and added tokens are cut out, and what lies between is read as the library reads it; bos comes first."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model("llama"))
    size = len(oracle)
    decoder = {str(size): {"content": "<|im|>", "special": True, "normalized": True}}
    tokens = read(tmp_path, model("llama"), tokenizer_class="LlamaTokenizer", added_tokens_decoder=decoder)
    ids = loaded(tokens).encode("the sea<|im|>runs</s> 1").ids
    assert ids == [1, *oracle.encode("the sea"), size, *oracle.encode("runs"), 2, *oracle.encode(" 1")]


def test_not_exactly(tmp_path: Path) -> None:
    """What tokenizer.json cannot say is not converted, and an addition to it is refused with what helps."""
    for name, raw in (
        ("symbols", model("llama", user_defined_symbols=["<x>"])),
        ("characters", model("plain bpe", model_type="char")),
    ):
        tokens = read(tmp_path / name, raw)
        assert tokens.data is None
        with pytest.raises(ModelError, match="no token can be added"):
            extend(tokens, {"<more>": {}})


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_union(kind: str, tmp_path: Path) -> None:
    """A union over models with tokenizer.model only has tokenizer.json instead, says so, and transformers loads it."""
    raw, folders = model(kind), []
    size = len(sentencepiece.SentencePieceProcessor(model_proto=raw))
    for seed, name in enumerate("ab"):
        folder = make.model(tmp_path / name, seed, vocab=size + seed)
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "tokenizer.model").write_bytes(raw)
        make.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        folders.append(folder)
    make.write_json(folders[1] / "added_tokens.json", {"<|im|>": size})
    merge = plait.merge(make.recipe("linear", *folders, tokenizer_source="union"))
    assert any("tokenizer.model becomes tokenizer.json" in note for note in merge.plan.notes)
    out = merge.save(tmp_path / "out").out
    assert not (out / "tokenizer.model").exists()
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode("the sea<|im|>runs").ids
    assert ids == loaded(read(tmp_path / "b", raw)).encode("the sea<|im|>runs").ids
    assert AutoTokenizer.from_pretrained(out)("the sea<|im|>runs").input_ids == ids
    rows, theirs = (load_file(f / "model.safetensors")["model.embed_tokens.weight"] for f in (out, folders[1]))
    assert rows.shape[0] == size + 1
    assert torch.equal(rows[size], theirs[size])
    kept = plait.merge(make.recipe("linear", folders[0], tokenizer_source="base")).save(tmp_path / "kept").out
    assert (kept / "tokenizer.model").read_bytes() == raw
    assert not (kept / "tokenizer.json").exists()


def test_gguf(tmp_path: Path) -> None:
    """The export to GGUF takes such a folder: the pieces in their order, scored so that they are merged as before."""
    raw = model("llama")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=raw)
    read(tmp_path, raw)
    make.write_json(tmp_path / "config.json", {"model_type": "llama"})
    found = vocabulary(tmp_path, len(oracle))
    assert (found.model, found.texts) == ("llama", [oracle.id_to_piece(n) for n in range(len(oracle))])
    assert found.scores is not None
    mergeable = [n for n in range(len(oracle)) if found.types[n] == 1 and len(found.texts[n]) > 1]
    order = sorted(mergeable, key=lambda n: -found.scores[n])  # type: ignore[index]
    assert order == sorted(mergeable, key=lambda n: -oracle.get_score(n))
