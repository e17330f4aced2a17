"""`plait reproduce`: what is kept beside a merge is enough to make it again, byte by byte."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

import make
import plait
from plait.cli import main
from plait.errors import ModelError, OutputError
from plait.reproduce import reproduce


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [make.model(tmp_path / name, seed) for seed, name in enumerate("abc")]


def dare(models: list[Path], **more: Any) -> dict[str, Any]:
    return make.recipe("dare_ties", *models[1:], base=models[0], parameters={"weight": 0.5, "density": 0.5}, **more)


def test_the_same(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options and seed of then are used; nothing is left of a temporary folder, and OUT is as it was."""
    recipe = make.write_json(tmp_path / "r.yml", dare(models, dtype="bfloat16"))
    out = plait.merge(recipe, seed=7, shard_size=2000).save(tmp_path / "out", copy_tokenizer=False, card=False).out
    before = make.hashes(out, "*"), sorted(tmp_path.iterdir())
    found = reproduce(out)
    assert found.same
    assert (found.tensors, found.differ, found.files, found.changed) == (21, (), (), ())
    assert (make.hashes(out, "*"), sorted(tmp_path.iterdir())) == before
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", str(out), str(tmp_path / "again"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["same"]
    assert make.hashes(tmp_path / "again", "*") == make.hashes(out, "*")


def test_another_input(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When an input is not what it was, the tensors that differ are named, and the input: exit 2."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    made = make.tensors(1)
    made["model.layers.1.mlp.up_proj.weight"] += 1
    make.write(models[1], made)
    found = reproduce(out)
    assert not found.same
    assert found.differ == ("model.layers.1.mlp.up_proj.weight",)
    assert any(str(models[1]) in said for said in found.changed)
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", str(out), "--quiet"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "1 of 21 tensors: model.layers.1.mlp.up_proj.weight" in said
    assert "Traceback" not in said


def test_damaged_out(models: list[Path], tmp_path: Path) -> None:
    """The comparison is with the bytes in OUT, not with what the provenance says of them."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    path = out / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    (out / "config.json").write_text("{}")
    found = reproduce(out)
    assert len(found.differ) == 1
    assert found.files == ("config.json",)
    assert found.changed == ()


def test_another_version(models: list[Path], tmp_path: Path) -> None:
    """Other versions than then are told, and are no fault while the bytes are the same."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    facts = json.loads((out / "plait_provenance.json").read_text())
    facts["versions"]["torch"] = "1.0"
    make.write_json(out / "plait_provenance.json", facts)
    found = reproduce(out)
    assert found.same
    assert "versions: torch (was 1.0" in found.changed[0]


def test_where_the_recipe_lay(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative paths start where the recipe lay; when it is no longer there the way to say where is told."""
    (tmp_path / "recipes").mkdir()
    recipe = make.write_json(tmp_path / "recipes" / "r.yml", make.recipe("linear", "../a", "../b"))
    out = plait.merge(recipe).save(tmp_path / "deep" / "er" / "out").out
    assert reproduce(out).same
    assert reproduce(out, relative_to=tmp_path / "recipes").same
    recipe.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", str(out)])
    assert ended.value.code == 2
    assert "--relative-to" in capsys.readouterr().err
    assert reproduce(out, relative_to=tmp_path / "recipes").same


def test_stages_and_nested(models: list[Path], tmp_path: Path) -> None:
    """A merge of several stages, and one of recipes inside a recipe, are made again."""
    a, b, c = models
    inner = make.recipe("linear", a, b)
    (tmp_path / "multi.yml").write_text(
        f"name: half\n{json.dumps(inner)[1:-1]}\n---\n".replace("name: half\n", "{name: half, ").replace(
            "\n---", "}\n---"
        )
        + json.dumps(make.recipe("linear", "half", c))
        + "\n"
    )
    nested = make.recipe("linear", c)
    nested["models"].append({"model": inner})
    make.write_json(tmp_path / "nested.yml", nested)
    for name in ("multi", "nested"):
        out = plait.merge(tmp_path / f"{name}.yml").save(tmp_path / name).out
        assert reproduce(out).same


@pytest.mark.parametrize("key", ["options", "seed", "plan", "methods", "versions", "output", "recipe", "models"])
def test_hostile_provenance(key: str, models: list[Path], tmp_path: Path) -> None:
    """A provenance that does not say enough is refused before the work, whatever stands there."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    facts = json.loads((out / "plait_provenance.json").read_text())
    for odd in (None, 3, [], {}, "x", {"x": 1}, [{"model": 1}], {"files": {"../x": "y"}}):
        make.write_json(out / "plait_provenance.json", {**facts, key: odd})
        if type(odd) is type(facts[key]) and key not in ("output", "options", "recipe"):
            with contextlib.suppress(ModelError):  # what could be one is one, of another merge
                reproduce(out)
            continue
        with pytest.raises(ModelError):
            reproduce(out)
    facts.pop(key)
    make.write_json(out / "plait_provenance.json", facts)
    with pytest.raises(ModelError):
        reproduce(out)


def test_refused(models: list[Path], tmp_path: Path) -> None:
    """A recipe that was changed since, and an INTO that holds something, are refused."""
    out = plait.merge(make.recipe("linear", *models)).save(tmp_path / "out").out
    with pytest.raises(OutputError, match="overwrite an input"):
        reproduce(out, models[1])
    assert reproduce(out, out.parent / "c2").same
    with pytest.raises(OutputError, match="not empty"):
        reproduce(out, out.parent / "c2")
    assert reproduce(out, out.parent / "c2", force=True).same
    (out / "plait_config.yml").write_text("merge_method: linear\n")
    with pytest.raises(ModelError, match="not the recipe"):
        reproduce(out)
