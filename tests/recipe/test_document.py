"""YAML text to located trees: places, limits, hostile and damaged texts."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import PlaitError, RecipeError, Where
from plait.recipe import document
from plait.recipe.document import MAX_BYTES, key_place, parse, place

TEXT = """\
models:
  - model: a
    parameters: {weight: [1, 2]}
merge_method: linear
"""


def test_places() -> None:
    """Every key, value and item knows its line and column."""
    (tree,) = parse(TEXT, "r.yml")
    assert place(tree, "models", 0, "model") == Where("r.yml", 2, 12)
    assert place(tree, "models", 0, "parameters", "weight", 1) == Where("r.yml", 3, 30)
    assert key_place(tree["models"][0]["parameters"], "weight") == Where("r.yml", 3, 18)
    assert place(tree, "models", 9) == place(tree, "models")
    assert place({"a": 1}, "a") is None


yaml_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), yaml_trees, max_size=4))
def test_reads_what_yaml_wrote(tree: dict[str, object]) -> None:
    """The tree is the one that PyYAML's safe loader gives."""
    text = yaml.safe_dump(tree)
    assert parse(text, "x") == ([yaml.safe_load(text)] if yaml.safe_load(text) is not None else [])


yaml_bits = st.sampled_from(
    [*list("-:[]{}#&*!|>'\"%@`?,\n\t "), "a: 1\n", "- b\n", "  ", "<<: *x\n", "&x ", "---\n", "...\n", "0x", "é"]
)


@settings(deadline=None)
@given(st.text() | st.lists(yaml_bits, max_size=30).map("".join))
def test_any_text(text: str) -> None:
    """Any text gives documents or a PlaitError, never another exception."""
    with contextlib.suppress(PlaitError):
        parse(text, "x")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=False)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "too large or too deep"),
        (CHAIN, "too large or too deep"),
        ("[" * 100_000 + "]" * 100_000, "too large or too deep"),
        ("{a: " * 5000, "too large or too deep"),
        ("- " * 5000, "too large or too deep|YAML"),
        ("? " * 5000, "too large or too deep|YAML"),
        ("- 1\n" * 250_000, "too large or too deep"),
        ("x" * (MAX_BYTES + 1), "too large or too deep"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {<<: *a}", "contains itself"),
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("a: !thing 3", "tag"),
        ("a: !!binary aGVsbG8=", "tag"),
        ("a: 2024-99-99", "cannot be read as a timestamp"),
        ("a: " + "1" * 5000, "cannot be read as a int"),
        ("a: 1\nb: 2\na: 3", "written twice"),
        ('a: ["b", science", "c"]', "quote at its end only"),
        ("1: x", "read as a int"),
        ("on: x", "read as a bool"),
        ("{[a]: x}", "a key is a word"),
        ("a: \x07", "not text"),
        ("a: \ud800", "not text"),
        ("a: *nothing", "YAML"),
    ],
)
def test_hostile(text: str, words: str) -> None:
    """A hostile text is refused with one clear message, at once and in little memory."""
    began = time.perf_counter()
    with pytest.raises(PlaitError, match=words):
        parse(text, "x")
    assert time.perf_counter() - began < 20


def test_duplicate_key_names_both_lines() -> None:
    """A key that is written twice is refused at the second line, with the first one named."""
    with pytest.raises(RecipeError) as caught:
        parse("a: 1\nb: 2\na: 3\n", "r.yml")
    assert caught.value.where == Where("r.yml", 3, 1)
    assert caught.value.found == "first on line 1"


def test_merge_keys() -> None:
    """`<<` brings in what an anchored mapping has, and what is written in place wins."""
    (tree,) = parse("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\n", "r")
    assert tree["y"] == {"a": 1, "b": 3}
    assert tree["z"] == {"a": 1, "b": 2, "c": 4}
    assert place(tree, "y", "a") == Where("r", 1, 11)


LOST = """\
models:
- model: a
parameters:
density: 0.5
- model: b
merge_method: ties
"""


@pytest.mark.parametrize(
    ("text", "line", "mend"),
    [
        (LOST, 3, "indentation was lost"),
        ("models:\n  - model: a\n  parameters:\n    weight: 1\n", 3, "indent the line"),
        ("base_model: b\n  - model: a\n    parameters: {weight: 1}\n", 2, "write 'models:'"),
        ("```yaml\nmerge_method: linear\n```\n", 1, "Markdown"),
        ("merge_method: linear\n```\n", 2, "Markdown"),
        ("  name: a\n  x: 1\n  ---\n  name: b\n  x: 2\n", 3, "unindent the whole text"),
        ("models:\n\t- model: a\n", 2, "tabs"),
        ("models:\n  - a\n  ...\n  - b\nmerge_method: x\n", 3, "replace the dots"),
        (" models:\n  - model: a\nmerge_method: ties\n", 3, "same column as line 1"),
        ("models:\n  - model: a\n merge_method: slerp\n dtype: x\n", 3, "same column as line 1"),
        ('a: ["b, "c"]\ne: f\n', 1, "missing quote"),
        ("a: `x`\n", 1, "quote the value"),
        ("a: 1\nThis is how it works, and why.\n", 2, "delete the text"),
    ],
)
def test_damage(text: str, line: int, mend: str) -> None:
    """What copying from web pages breaks is recognised: the message points at the line and tells the mend."""
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yml")
    assert caught.value.where is not None
    assert (caught.value.where.line, mend in (caught.value.do or "")) == (line, True), str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02}q\x00", "not text"),
        (b"a: \xe9", "not text"),
        (b"\xff\xfea", "not text"),
        (b"x" * (MAX_BYTES + 1), "too large"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, words: str) -> None:
    """A model file given as a recipe, or another encoding, is told as such."""
    (tmp_path / "r.yml").write_bytes(data)
    with pytest.raises(RecipeError, match=words):
        document.read(tmp_path / "r.yml")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible name are errors of the user's, not of ours."""
    for path in (tmp_path / "none.yml", tmp_path, "a\0b", "x" * 5000):
        with pytest.raises(RecipeError):
            document.read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """UTF-8, with or without a mark, and UTF-16 with one are read."""
    (tmp_path / "r.yml").write_text("a: é\n", encoding=encoding)
    assert parse(document.read(tmp_path / "r.yml"), "r") == [{"a": "é"}]
