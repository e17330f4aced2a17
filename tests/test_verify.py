"""`plait verify`: damage of every kind is found and named; what is whole is called whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import make
import plait
from plait.cli import main
from plait.errors import PlaitError
from plait.verify import verify


@pytest.fixture
def out(tmp_path: Path) -> Path:
    models = [make.model(tmp_path / name, seed, dtype=torch.bfloat16) for seed, name in enumerate("ab")]
    return plait.merge(make.recipe("linear", *models), shard_size=2000).save(tmp_path / "out").out


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def shard(out: Path, tensor: str = "model.norm.weight") -> Path:
    return out / read(out / "model.safetensors.index.json")["weight_map"][tensor]


def change(out: Path, file: str, **keys: Any) -> None:
    make.write_json(out / file, read(out / file) | keys)


def flip(out: Path) -> None:
    raw = bytearray(shard(out).read_bytes())
    raw[-1] ^= 1
    shard(out).write_bytes(raw)


def nan(out: Path) -> None:
    raw = bytearray(shard(out).read_bytes())
    raw[-2:] = b"\xc0\x7f"
    shard(out).write_bytes(raw)


def other_name(out: Path) -> None:
    path = shard(out)
    save_file({f"x.{name}": tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def index_lies(out: Path) -> None:
    path = out / "model.safetensors.index.json"
    told = read(path)
    files = sorted({*told["weight_map"].values()})
    told["weight_map"]["model.norm.weight"] = next(f for f in files if f != shard(out).name)
    make.write_json(path, told)


def stray_shard(out: Path) -> None:
    (out / "old.safetensors").write_bytes(shard(out).read_bytes())


def lost_tokenizer(out: Path) -> None:
    (out / "tokenizer.json").unlink()


def other_recipe(out: Path) -> None:
    (out / "plait_config.yml").write_text("merge_method: linear\n")


def other_card(out: Path) -> None:
    (out / "README.md").write_text("---\nlicense: mit\n---\n# Another model\n")


def no_card(out: Path) -> None:
    (out / "README.md").unlink()


def many_tokens(out: Path) -> None:
    make.write_json(out / "tokenizer.json", make.tokenizer(17))


def left_over(out: Path) -> None:
    (out / "model-00001-of-00002.safetensors.partial").touch()


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flip, "other bytes than were written"),
    "not a number": (nan, "NaN or infinity: 1 in model.norm.weight"),
    "names": (other_name, "in none of its files"),
    "index": (index_lies, "is not true"),
    "total size": (lambda o: change(o, "model.safetensors.index.json", metadata={"total_size": 3}), "is not true"),
    "a shard too many": (stray_shard, "weights that are not the model's"),
    "no tokenizer": (lost_tokenizer, "lacks files"),
    "recipe": (other_recipe, "plait_config.yml"),
    "another card": (other_card, "the card of something else"),
    "no card": (no_card, "has no card"),
    "layers": (lambda o: change(o, "config.json", num_hidden_layers=3), "num_hidden_layers: 2, as the shapes are"),
    "vocabulary": (lambda o: change(o, "config.json", vocab_size=99), "vocab_size: 16, as the shapes are"),
    "width": (lambda o: change(o, "config.json", hidden_size=99), "hidden_size: 8, as the shapes are"),
    "heads": (
        lambda o: change(o, "config.json", num_attention_heads=8),
        "num_attention_heads: 2 times num_key_value_heads",
    ),
    "pairs": (
        lambda o: change(o, "config.json", num_key_value_heads=4),
        "num_attention_heads: 2 times num_key_value_heads",
    ),
    "heads of a width": (
        lambda o: change(o, "config.json", num_attention_heads=8, head_dim=2),
        "num_attention_heads: 4, as the shapes are",
    ),
    "width of heads": (lambda o: change(o, "config.json", head_dim=4), "head_dim: 2, as the shapes are"),
    "inner width": (
        lambda o: change(o, "config.json", intermediate_size=9),
        "intermediate_size: 16, as the shapes are",
    ),
    "tokens": (many_tokens, "tokens without a row"),
    "partial": (left_over, "has not come to its end"),
}


def test_whole(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a merge wrote is whole: every check is made and none is wrong; also under another name, and with scores."""
    moved = out.rename(out.parent / "moved")
    found = verify(moved)
    assert found.problems == ()
    assert list(found.checks) == ["index", "hashes", "files", "finite", "config", "tokenizer", "card"]
    assert not any("not checked" in said or "wrong" in said for said in found.checks.values())
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(moved), "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["tensors"] == 21


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt(case: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of damage is named, with what was wanted and found: exit 2; the folder is left as it is."""
    spoil, said = SPOILT[case]
    spoil(out)
    before = make.hashes(out, "*")
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(out), *more])
        assert ended.value.code == 2
    told = capsys.readouterr()
    problems = json.loads(told.out[told.out.index("\n{") :])["problems"]
    assert said in told.err
    assert any(said in f"{p['what']} {p['wanted']} {p['found']}" for p in problems)
    assert all(p["found"] and (p["wanted"] or p["do"]) for p in problems)
    assert make.hashes(out, "*") == before


def test_other_models(tmp_path: Path) -> None:
    """A model that no merge wrote is checked as far as it can be; pickles and folders that are none are refused."""
    model = make.model(tmp_path / "a", shards=2)
    found = verify(model)
    assert found.problems == ()
    assert "not checked" in found.checks["hashes"]
    change(model, "config.json", num_hidden_layers=5)
    assert "num_hidden_layers: 5" in str(verify(model).problems[0])
    (tmp_path / "b").mkdir()
    torch.save(make.tensors(), tmp_path / "b" / "pytorch_model.bin")
    for path in (tmp_path / "b", tmp_path / "none", tmp_path / "a" / "config.json"):
        with pytest.raises(PlaitError):
            verify(path)


def test_allowed_infinity(tmp_path: Path) -> None:
    """Values that --allow-nonfinite let through are told, and are no fault."""
    made = make.tensors()
    made["model.norm.weight"][0] = float("inf")
    model = make.write(tmp_path / "a", made)
    out = plait.merge(make.recipe("linear", model)).save(tmp_path / "out", allow_nonfinite=True).out
    found = verify(out)
    assert found.problems == ()
    assert "model.norm.weight" in found.checks["finite"]


@pytest.mark.parametrize("code", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_finite_in_every_dtype(code: str, tmp_path: Path) -> None:
    """NaN is found in every floating dtype, at the end of a tensor that is larger than a read; ordinary values are none."""
    made = {"x": torch.ones(1_100_003).mul(3).to(getattr(torch, code))}
    (tmp_path / "m").mkdir()
    save_file(made, tmp_path / "m" / "model.safetensors")
    assert verify(tmp_path / "m").problems == ()
    made["x"][-1] = float("nan")
    save_file(made, tmp_path / "m" / "model.safetensors")
    assert "1 in x" in str(verify(tmp_path / "m").problems[0])


@pytest.mark.parametrize("facts", [[], {}, {"plait": 1, "recipe": 3, "models": 4, "output": 5, "settings": 6}])
def test_hostile_provenance(facts: Any, out: Path) -> None:
    """A provenance of another shape is an error for people."""
    make.write_json(out / "plait_provenance.json", facts)
    with pytest.raises(PlaitError):
        verify(out)


def test_a_file_outside(out: Path) -> None:
    """Names in a provenance cannot make plait read outside of the folder."""
    facts = read(out / "plait_provenance.json")
    os.mkfifo(out.parent / "pipe")
    facts["output"]["files"] = {"../pipe": "0" * 64, "/dev/zero": "0" * 64}
    make.write_json(out / "plait_provenance.json", facts)
    with pytest.raises(PlaitError, match="no files of its folder"):
        verify(out)


@pytest.mark.parametrize("verb", ["verify", "report", "reproduce", "card"])
def test_provenance_of_another_shape(verb: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A provenance that holds other things than a merge writes is an error that can be mended, for every verb that reads it."""
    facts = read(out / "plait_provenance.json")
    for key in ("models", "settings", "output", "options", "nested", "stacking", "recipe_file", "seed", "recipe"):
        make.write_json(out / "plait_provenance.json", {**facts, key: [5] if key != "seed" else "x"})
        with pytest.raises(SystemExit) as ended:
            main([verb, str(out)])
        assert ended.value.code == 2
        assert f"found:  {key}: " in capsys.readouterr().err


def test_shorter_meanwhile(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that loses its end while it is read is told by name, and no hash of what is not there."""
    path, real = shard(out), os.pread

    def cut(*given: Any) -> bytes:
        os.truncate(path, 300)
        return real(*given)

    monkeypatch.setattr(os, "pread", cut)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(out)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"{path} became shorter" in told
    assert "leave the model alone" in told
    assert "Traceback" not in told
