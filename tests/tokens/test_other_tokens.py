"""`plait tokens trim | add | pad`: fewer tokens, more tokens, more rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import make
import vocabularies
from plait.checkpoint.directory import read_json
from plait.cli import main
from plait.errors import PlaitError
from plait.merged import Merge
from plait.plan import Plan
from plait.tokens.grow import add, pad
from plait.tokens.space import Options
from plait.tokens.transplant import transplant
from plait.tokens.trim import trim
from plait.vocabulary.read import read_tokens
from tokens.test_transplant import EMBED, HEAD, model

TEXT = "the quick brown fox\nthe quick cat jumps over\n"


def said(folder: Path, text: str) -> torch.Tensor:
    """The logits of a text, as tokens by the folder's tokenizer."""
    network, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForCausalLM, AutoTokenizer))
    with torch.inference_mode():
        return network(**tokenizer(text, return_tensors="pt")).logits[0]


def kept(plan: Plan, out: Path) -> dict[str, torch.Tensor]:
    Merge(plan).save(out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_trim_to_a_text(kind: str, tmp_path: Path) -> None:
    """The text is read as before, token by token, and the model says of each kept token what it said; ids follow."""
    source = model(tmp_path / "model", kind, [*vocabularies.PLAIN, *vocabularies.FOREIGN], 1)
    settings = read_json(source / "tokenizer_config.json")
    make.write_json(source / "tokenizer_config.json", {**settings, "eos_token": "</s>"})
    text = tmp_path / "text"
    text.write_text(TEXT, "utf-8")
    found = kept(trim(source, texts=[text]), tmp_path / "out")
    old, new = read_tokens(source), read_tokens(tmp_path / "out")
    assert old
    assert new
    assert len(new.ids) < len(old.ids)
    assert found[EMBED].shape[0] == len(new.ids) == read_json(tmp_path / "out" / "config.json")["vocab_size"]
    weights = load_file(source / "model.safetensors")
    for name in (EMBED, HEAD):
        at = [old.ids[text] for text in new.ids]
        assert torch.equal(found[name][list(new.ids.values())], weights[name][at])
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (new.ids["<s>"], new.ids["</s>"])
    rows = [old.ids[text] for text, _ in sorted(new.ids.items(), key=lambda item: item[1])]
    for line in TEXT.splitlines():
        torch.testing.assert_close(said(tmp_path / "out", line), said(source, line)[:, rows])


def test_trim_to_a_list(tmp_path: Path) -> None:
    """A list keeps its tokens and what they are made of; a token that there is not is told; --unused cuts spare rows only."""
    source = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1, spare=9)
    old = read_tokens(source)
    assert old
    longest = max(old.ids, key=len)
    kept(trim(source, keep=[longest], pad_to_multiple_of=8), tmp_path / "out")
    new = read_tokens(tmp_path / "out")
    assert new
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert longest in new.ids
    assert tokenizer.convert_ids_to_tokens(tokenizer(longest.replace("Ġ", " "))["input_ids"]) == [longest]
    assert load_file(tmp_path / "out" / "model.safetensors")[EMBED].shape[0] % 8 == 0
    with pytest.raises(PlaitError, match="lacks 1 of the tokens"):
        trim(source, keep=["no such token"])
    with pytest.raises(PlaitError, match="nothing is said"):
        trim(source)
    found = kept(trim(source, unused=True), tmp_path / "unused")
    assert found[EMBED].shape[0] == len(old.ids)
    assert torch.equal(found[HEAD], load_file(source / "model.safetensors")[HEAD][:-9])


def test_trim_follows_the_post_processor(tmp_path: Path) -> None:
    """The tokens that a tokenizer puts around a text have their new ids."""
    source = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1)
    data = read_json(source / "tokenizer.json")
    ids = read_tokens(source).ids  # type: ignore[union-attr]
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}}
    data["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    moved = {text: len(ids) - 1 - n for text, n in ids.items()}  # special tokens last
    data["model"]["vocab"] = {text: moved[text] for text in data["model"]["vocab"]}
    for entry in data["added_tokens"]:
        entry["id"] = moved[entry["content"]]
    special["<s>"]["ids"] = [moved["<s>"]]
    make.write_json(source / "tokenizer.json", data)
    text = tmp_path / "text"
    text.write_text(TEXT, "utf-8")
    kept(trim(source, texts=[text]), tmp_path / "out")
    new = read_tokens(tmp_path / "out")
    assert new
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("the quick")["input_ids"][0] == new.ids["<s>"] != moved["<s>"]
    )


def test_add(tmp_path: Path) -> None:
    """Added tokens are read as one each, take spare rows first, and have the rows that were asked for; the others stay."""
    source = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1, spare=1)
    weights, size = load_file(source / "model.safetensors"), read_tokens(source).size  # type: ignore[union-attr]
    found = kept(add(source, ["<|new|>", "<|other|>"], special=True), tmp_path / "out")
    assert found[EMBED].shape[0] == size + 2
    torch.testing.assert_close(found[EMBED][size:], weights[EMBED].mean(0).expand(2, -1))
    assert torch.equal(found[HEAD][:size], weights[HEAD][:size])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the<|other|>fox", add_special_tokens=False)["input_ids"]
    assert size + 1 in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "thefox"
    like = kept(add(source, ["<|new|>"], like="</s>"), tmp_path / "like")
    assert torch.equal(like[EMBED][size], weights[EMBED][2])
    parts = kept(add(source, ["quick fox"], Options("subword", subword_method="sum")), tmp_path / "parts")
    own = AutoTokenizer.from_pretrained(source)("quick fox", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(parts[EMBED][size], weights[EMBED][own].sum(0))
    for wrong, what in ((["</s>"], "already"), ([], "no tokens")):
        with pytest.raises(PlaitError, match=what):
            add(source, wrong)
    with pytest.raises(PlaitError, match="needs a donor"):
        add(source, ["x y"], Options("omp"))


def test_pad(tmp_path: Path) -> None:
    """Padding adds rows of the mean, or zeros, up to the multiple, and changes nothing else."""
    source = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1, dtype=torch.bfloat16)
    weights = load_file(source / "model.safetensors")
    rows = weights[EMBED].shape[0]
    found = kept(pad(source, 128, Options("zero")), tmp_path / "out")
    assert found[EMBED].shape[0] == -(-rows // 128) * 128 == read_json(tmp_path / "out" / "config.json")["vocab_size"]
    assert torch.equal(found[EMBED][:rows], weights[EMBED])
    assert not found[HEAD][rows:].any()
    mean = kept(pad(source, 128, Options("mean")), tmp_path / "mean")
    np.testing.assert_allclose(mean[HEAD][-1].float(), weights[HEAD].float().mean(0), atol=2e-3)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verbs run from the command line, each on what the one before has written."""
    source = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1)
    text = tmp_path / "text"
    text.write_text(TEXT, "utf-8")
    at = [str(source), *(str(tmp_path / name) for name in "abc")]
    for words in (
        ["trim", at[0], at[1], "--text", str(text)],
        ["add", at[1], at[2], "<|x|>", "--like", "</s>"],
        ["pad", at[2], at[3], "--pad-to-multiple-of", "64", "-a", "zero"],
    ):
        with pytest.raises(SystemExit) as code:
            main(["tokens", *words])
        assert code.value.code == 0, capsys.readouterr().err
    assert load_file(tmp_path / "c" / "model.safetensors")[EMBED].shape[0] % 64 == 0
    assert "<|x|>" in read_tokens(tmp_path / "c").ids  # type: ignore[union-attr]


def no_text(folder: Path) -> None:
    (folder / "list").write_bytes(b"w5\n\xff\xfe\n")


def older(folder: Path) -> None:
    """The second model has the tokenizer file of another age, with more tokens than rows."""
    (folder / "b" / "tokenizer.json").unlink()
    (folder / "b" / "vocab.txt").write_text("\n".join(f"w{i}" for i in range(24)))


def odd_head(folder: Path) -> None:
    weights = make.tensors(0)
    make.write(folder / "a", {**weights, HEAD: weights[HEAD].T.contiguous()})


def quantised(folder: Path) -> None:
    weights = make.tensors(0)
    make.write(folder / "a", {**weights, HEAD: weights[HEAD].to(torch.float8_e4m3fn)})


def unlike(folder: Path) -> None:
    data = make.tokenizer(16)
    data["model"] = {**data["model"], "vocab": {f"x{i}": i for i in range(16)}, "unk_token": "x0"}
    make.write_json(folder / "b" / "tokenizer.json", data)


def hardly_trained(folder: Path) -> None:
    weights = make.tensors(0)
    make.write(folder / "a", {**weights, EMBED: torch.ones(16, 8), HEAD: torch.ones(16, 8)})


def scored(folder: Path) -> None:
    """A text that is read otherwise without a token that is not in it: the score of unknown letters follows the lowest."""
    vocab = [["<unk>", 0.0], ["xy", -1.0], ["y", 11.0], ["zzzz", -30.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab}
    make.write_json(folder / "a" / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    (folder / "text").write_text("xy\n")


def no_unknown(folder: Path) -> None:
    for name in "ab":
        data = make.tokenizer(16)
        data["model"]["vocab"] = {f"{name}{i}": i for i in range(16)}
        make.write_json(folder / name / "tokenizer.json", data)
    (folder / "text").write_text("a1 b1\n")


def nothing(_: Path) -> None: ...


REFUSED: list[tuple[Callable[[Path], None], str, str]] = [
    (nothing, "add @/a @/out new --like w99", "has no token 'w99'"),
    (nothing, "pad @/a @/out -a subword", "rows without tokens cannot be made by subword"),
    (no_text, "trim @/a @/out --keep @/list", "list cannot be read"),
    (no_text, "add @/a @/out --tokens-file @/list", "list cannot be read"),
    (nothing, "trim @/a @/out --text /proc/self/mem", "/proc/self/mem cannot be read"),
    (scored, "trim @/a @/out --text @/text", "would be read otherwise with the tokens that it needs"),
    (no_unknown, "trim @/a @/out --text @/text", "cannot read a text"),
    (no_unknown, "add @/a @/out new -a subword", "cannot read a text"),
    (no_unknown, "transplant @/a @/b @/out -a subword", "cannot read a text"),
    (older, "trim @/b @/out --text @/a/config.json", "does not say how a text becomes tokens"),
    (older, "pad @/b @/out", "holds tokens without a row in the model"),
    (odd_head, "pad @/a @/out", "spans the vocabulary in a way that cannot be changed"),
    (quantised, "pad @/a @/out", "tensors in F8_E4M3 cannot be written"),
    (unlike, "transplant @/a @/b @/out", "have no token in common"),
    (hardly_trained, "transplant @/a @/b @/out --magikarp", "omp needs tokens that both models have"),
    (older, "transplant @/a @/b @/out -a subword", "does not say how a text becomes tokens"),
    (older, "transplant @/b @/a @/out -a subword", "does not say how a text becomes tokens"),
    (nothing, "transplant @/a @/b @/out --lora-merge-dtype bf99", "cannot be rounded to 'bf99'"),
]


@pytest.mark.parametrize(("change", "words", "said"), REFUSED)
def test_refused(
    change: Callable[[Path], None], words: str, said: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """What cannot be done to a vocabulary is told in words, exit 2, and no OUT is there."""
    for seed, name in enumerate("ab"):
        make.model(tmp_path / name, seed)
    change(tmp_path)
    refused(said, "tokens", *words.replace("@", str(tmp_path)).split(), "--quiet")


def test_a_match_that_there_is_not(tmp_path: Path) -> None:
    """In Python, too, a side that matches are made for is one of four."""
    source = make.model(tmp_path / "a")
    with pytest.raises(PlaitError, match="byte_match cannot be 'both'") as error:
        transplant(source, source, byte_match="both")
    assert (error.value.wanted, error.value.found) == ("lm_head, embed, yes, no", "both")
