"""Unions: the base's text stays as it is, and nothing is added in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import make
import plait
import vocabularies
from plait.errors import ModelError
from plait.vocabulary.read import read_tokens
from plait.vocabulary.unite import extend, loaded, strip, unite

MARKERS = ("<|im_start|>", "<tool>", "[GAP]")
TEXTS = st.text(
    st.sampled_from("thequickbrownfoxlazydogweights      \nжилибыдед(x_1=42)ñé¡<|>/[]▁#Ġ0A字"), max_size=40
) | st.lists(
    st.sampled_from([*" ".join(vocabularies.PLAIN[:2] + vocabularies.FOREIGN[:3]).split(), *MARKERS, "  ", "\n"]),
    max_size=12,
).map(" ".join)


@cache
def pair(kind: str, folder: Path) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    """(base, another, their union): the other has foreign letters, markers, and a run of spaces for a token."""
    base = vocabularies.tokenizer(kind, vocabularies.PLAIN, 90)
    other = vocabularies.tokenizer(kind, vocabularies.FOREIGN)
    other.add_special_tokens([AddedToken("<|im_start|>", special=True, lstrip=True)])
    other.add_tokens([AddedToken("<tool>"), AddedToken("[GAP]"), AddedToken("    "), AddedToken("lazy")])
    read = []
    for name, made in (("base", base), ("other", other)):
        (folder / name).mkdir()
        made.save(str(folder / name / "tokenizer.json"))
        tokens = read_tokens(folder / name)
        assert tokens is not None
        assert tokens.ids == made.get_vocab()
        read.append(tokens)
    return base, other, loaded(unite(read[0], read[1:]).tokens)


@pytest.fixture(scope="module", params=vocabularies.KINDS)
def union(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    return pair(request.param, tmp_path_factory.mktemp("union"))


def test_base_ids(union: tuple[Tokenizer, Tokenizer, Tokenizer]) -> None:
    """Every token of the base keeps its id, and the ids of the union have no gaps and no two tokens."""
    base, _, made = union
    vocab = made.get_vocab()
    assert base.get_vocab().items() <= vocab.items()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert set(MARKERS) <= vocab.keys()
    assert not {"    ", "lazy"} & (vocab.keys() - base.get_vocab().keys())


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_row_5_union_tokenization(union: tuple[Tokenizer, Tokenizer, Tokenizer], text: str) -> None:
    """Text that the base can encode, and that holds no marker, becomes the same ids as with the base."""
    base, _, made = union
    ids = base.encode(text, add_special_tokens=False).ids
    if base.token_to_id("<unk>") not in ids and not any(marker in text for marker in MARKERS):
        assert made.encode(text, add_special_tokens=False).ids == ids


def test_every_added_token_is_produced(union: tuple[Tokenizer, Tokenizer, Tokenizer]) -> None:
    """For every token that the union adds there is a text that becomes it."""
    base, other, made = union
    added = made.get_vocab().keys() - base.get_vocab().keys()
    said = [other.decode([other.token_to_id(text)], skip_special_tokens=False) for text in added]
    words = " ".join(vocabularies.FOREIGN).split()
    texts = [
        *said,
        *added,
        *words,
        *vocabularies.FOREIGN,
        *(f"{a} {b}" for a, b in zip(said, reversed(said), strict=True)),
    ]
    texts += (
        [f"a{text}" for text in said]
        + [f"a{text.removeprefix('##')}" for text in added]
        + [chr(n) for n in range(1, 0x800)]
    )
    seen = {n for encoding in made.encode_batch(texts, add_special_tokens=False) for n in encoding.ids}
    assert {text for text in added if made.token_to_id(text) not in seen} == set()


def test_what_could_not_be_written_now_can(union: tuple[Tokenizer, Tokenizer, Tokenizer]) -> None:
    """A word of the other model with letters that the base lacks comes back whole."""
    made, text = union[2], "курочка"
    ids = made.encode(text, add_special_tokens=False).ids
    assert made.decode(ids).strip() == text
    assert made.token_to_id("<unk>") not in ids


def test_full_bases_gain_markers_only(tmp_path: Path) -> None:
    """A base that can encode all text, by bytes, gains markers and nothing else."""
    for kind in ("byte-level", "sentencepiece with bytes"):
        (tmp_path / kind).mkdir()
        base, _, made = pair(kind, tmp_path / kind)
        assert made.get_vocab().keys() - base.get_vocab().keys() == set(MARKERS)


def test_markers_keep_their_manners(union: tuple[Tokenizer, Tokenizer, Tokenizer]) -> None:
    """A marker is special, or eats the space beside it, as it does in its own model."""
    made = union[2]
    entries = {entry["content"]: entry for entry in json.loads(made.to_str())["added_tokens"]}
    assert entries["<|im_start|>"]["special"]
    assert entries["<|im_start|>"]["lstrip"]
    assert not entries["<tool>"]["special"]


def test_row_5_union_vocab_random(tmp_path: Path) -> None:
    """Tokenizer and weights are the same bytes in another process with another PYTHONHASHSEED."""
    a = vocabularies.write(tmp_path / "a", vocabularies.tokenizer("byte-level with gaps", vocabularies.PLAIN, 90), 1)
    b = vocabularies.write(tmp_path / "b", vocabularies.tokenizer("byte-level with gaps", vocabularies.FOREIGN), 2)
    recipe, found = make.recipe("linear", a, b, tokenizer_source="union"), []
    plait.merge(recipe).save(tmp_path / "here")
    code = f"import plait; plait.merge({recipe!r}).save({str(tmp_path / 'there')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "5"})
    for out in (tmp_path / "here", tmp_path / "there"):
        found.append(make.hashes(out, "*.safetensors") | make.hashes(out, "tokenizer*.json"))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_base_without_tokenizer_json(tmp_path: Path) -> None:
    """Nothing can be added to a base with the older files alone, and the error says what to do."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    tokens = read_tokens(tmp_path)
    assert tokens is not None
    assert extend(tokens, {}) is tokens
    with pytest.raises(ModelError, match=r"AutoTokenizer.*save_pretrained"):
        extend(tokens, {"<x>": {}})


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_strip(kind: str, tmp_path: Path) -> None:
    """A tokenizer without its last tokens loads, lacks just these, and gives ids of the others only."""
    made = vocabularies.tokenizer(kind, vocabularies.PLAIN, 90)
    made.add_tokens(["<more>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokens = read_tokens(tmp_path)
    assert tokens is not None
    for rows in (tokens.size, tokens.size - 1, tokens.size - 9):
        less = strip(tokens, rows)
        assert less.ids == {text: n for text, n in made.get_vocab().items() if n < rows}
        ids = loaded(less).encode("the quick <more> weights", add_special_tokens=False).ids
        assert max(ids) < rows


def test_plan_says_what_is_added(tmp_path: Path) -> None:
    """The plan's notes say how many tokens of which model are added and how many are not, with the markers' names."""
    other = vocabularies.tokenizer("byte-level", vocabularies.FOREIGN)
    other.add_special_tokens(["<|im_end|>"])
    a = vocabularies.write(tmp_path / "a", vocabularies.tokenizer("byte-level", vocabularies.PLAIN, 90), 1)
    b = vocabularies.write(tmp_path / "b", other, 2)
    notes = "\n".join(plait.merge(make.recipe("linear", a, b, tokenizer_source="union")).plan.notes)
    assert "1 markers (<|im_end|>) and 0 ordinary tokens" in notes
    assert "no text would become" in notes
