"""Reading the tokens of a folder, whatever file they are in, and refusing what cannot be meant."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import make
import plait
import vocabularies
from plait.errors import ModelError, PlaitError
from plait.vocabulary.read import read_tokens


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_as_the_library_reads(kind: str, tmp_path: Path) -> None:
    """tokenizer.json of each kind gives the ids that the tokenizers library gives."""
    made = vocabularies.tokenizer(kind, vocabularies.PLAIN)
    made.add_tokens(["<more>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokens = read_tokens(tmp_path)
    assert tokens is not None
    assert tokens.ids == made.get_vocab()
    assert "<more>" in tokens.added
    assert tokens.size == made.get_vocab_size()


def sentencepiece(pieces: list[str]) -> bytes:
    """A SentencePiece model with these pieces and scores, as its protobuf has them, and a field that is none of ours."""

    def field(number: int, body: bytes) -> bytes:
        size, length = len(body), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + body

    entries = (
        field(1, p.encode()) + b"\x15" + struct.pack("<f", -float(i)) + b"\x18\x01" for i, p in enumerate(pieces)
    )
    return b"".join(field(1, entry) for entry in entries) + field(2, b"\x18\x80\x80\x02")


def test_older_files(tmp_path: Path) -> None:
    """tokenizer.model, vocab.json and vocab.txt are read too, with the tokens that the files beside them add."""
    pieces = ["<unk>", "<s>", "▁the", "x" * 300]
    for name, content in (
        ("tokenizer.model", sentencepiece(pieces)),
        ("vocab.json", json.dumps({p: i for i, p in enumerate(pieces)}).encode()),
        ("vocab.txt", "\n".join(pieces).encode()),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        make.write_json(folder / "added_tokens.json", {"<a>": 4})
        make.write_json(
            folder / "tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "<b>"}}, "eos_token": "<b>"}
        )
        tokens = read_tokens(folder)
        assert tokens is not None
        assert tokens.ids == {p: i for i, p in enumerate([*pieces, "<a>", "<b>"])}
        assert tokens.named == {"eos": "<b>"}
    (tmp_path / "none").mkdir()
    assert read_tokens(tmp_path / "none") is None


def broken(**change: Any) -> dict[str, Any]:
    data: dict[str, Any] = make.tokenizer(6)
    data["model"] |= change.pop("model", {})
    return {**data, **change}


HOSTILE = [
    broken(model={"vocab": {"a": -1}}),
    broken(model={"vocab": {"a": 2**40}}),
    broken(model={"vocab": {"a": 1, "b": 1}}),
    broken(model={"vocab": {"a": 1.5}}),
    broken(model={"vocab": {"a": True}}),
    broken(model={"vocab": {"a": "1"}}),
    broken(model={"vocab": ["a"]}),
    broken(model={"vocab": None}),
    broken(model={"type": "Unigram", "vocab": {"a": 1}}),
    broken(model={"type": "Unigram", "vocab": [["a"]]}),
    broken(model={"type": "Unigram", "vocab": [[1, 0.5]]}),
    broken(model={"type": "Magic"}),
    broken(model={"type": ["BPE"]}),
    broken(added_tokens={"a": 1}),
    broken(added_tokens=["a"]),
    broken(added_tokens=[{"content": "x"}]),
    broken(added_tokens=[{"content": "x", "id": -4}]),
    broken(added_tokens=[{"content": "x", "id": 2}]),
    broken(added_tokens=[{"content": 7, "id": 9}]),
    {"model": [1]},
    {},
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile(data: dict[str, Any], tmp_path: Path) -> None:
    """A tokenizer.json with ids that are none, or of the wrong form, is refused by an error that names it."""
    make.write_json(tmp_path / "tokenizer.json", data)
    with pytest.raises(ModelError, match=r"tokenizer\.json") as caught:
        read_tokens(tmp_path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x02\x0a\x01", b"\xff" * 40, b"\x0b"])
def test_hostile_sentencepiece(raw: bytes, tmp_path: Path) -> None:
    """A broken tokenizer.model is refused, or holds no token; it neither hangs nor crashes."""
    (tmp_path / "tokenizer.model").write_bytes(raw)
    try:
        tokens = read_tokens(tmp_path)
    except PlaitError:
        return
    assert tokens is not None
    assert not tokens.ids


def test_hostile_in_a_merge(tmp_path: Path) -> None:
    """A recipe that asks for a tokenizer is refused with the name of the broken file; one that does not is merged."""
    a, b = make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)
    make.write_json(b / "tokenizer.json", HOSTILE[0])
    assert plait.check(make.recipe("linear", a, b)) == []
    (error,) = plait.check(make.recipe("linear", a, b, tokenizer_source="union"))
    assert str(b / "tokenizer.json") in str(error)


def test_merges_that_the_library_refuses(tmp_path: Path) -> None:
    """A tokenizer.json that reads well and that the tokenizers library cannot use is refused when it is to be extended."""
    paths = []
    for seed, kind in enumerate((vocabularies.PLAIN, vocabularies.FOREIGN)):
        made = vocabularies.tokenizer("byte-level with gaps", kind)
        paths.append(vocabularies.write(tmp_path / str(seed), made, seed))
    data = json.loads((paths[0] / "tokenizer.json").read_text())
    data["model"]["merges"].append(["q", "not there"])
    make.write_json(paths[0] / "tokenizer.json", data)
    (error,) = plait.check(make.recipe("linear", *paths, tokenizer_source="union"))
    assert str(paths[0] / "tokenizer.json") in str(error)
