"""`plait multi`: stages of one file, streamed or kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import loras
import make
import plait
from plait.cli import main
from plait.errors import PlaitError
from plait.multi import multi
from plait.testing.checkpoints import same


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {name: str(make.model(tmp_path / name, seed)) for seed, name in enumerate(["base", "a", "b"])}


def stages(models: dict[str, str], first: str = "half", weight: float = 0.5) -> list[dict[str, Any]]:
    """A linear of a and b, a task_arithmetic of it, and a slerp of both."""
    return [
        {
            "merge_method": "slerp",
            "base_model": first,
            "models": [{"model": "other"}],
            "parameters": {"t": [0.2, 0.7]},
        },
        {"name": "other", **make.recipe("task_arithmetic", first, base=models["base"])},
        {
            "name": first,
            "merge_method": "linear",
            "models": [{"model": models["a"], "parameters": {"weight": weight}}, {"model": models["b"]}],
            "parameters": {"weight": 1},
        },
    ]


def write(path: Path, documents: list[dict[str, Any]]) -> Path:
    path.write_text("# stages, in any order\n" + yaml.safe_dump_all(documents, sort_keys=False))
    return path


@pytest.mark.parametrize("name", ["half", "linear", "slerp", "merge_method", "models", "union"])
def test_row_19_circular_name(name: str, models: dict[str, str], tmp_path: Path) -> None:
    """A stage may have the name of any word of the language; streamed and kept stages give the same bytes."""
    path = write(tmp_path / "multi.yml", stages(models, name))
    multi(path, tmp_path / "streamed")
    made = multi(path, tmp_path / "out", keep=tmp_path / "kept")
    assert [stage.name for stage in made] == [name, "other", None]
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == sorted([name, "other"])
    assert make.hashes(tmp_path / "streamed") == make.hashes(tmp_path / "out")


def test_row_19_multi_lazy_stale(models: dict[str, str], tmp_path: Path) -> None:
    """A kept stage is used again only as long as its recipe, models, options and bytes are what they were."""

    def made(weight: float = 0.5, **more: Any) -> dict[str, bool]:
        path = write(tmp_path / "multi.yml", stages(models, weight=weight))
        done = multi(path, tmp_path / "out", keep=kept, saving={"force": False, **more}, planning=planning)
        out = {str(stage.name): not stage.saved.untouched for stage in done}
        assert out.pop("None")
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        return out

    kept, planning = tmp_path / "kept", {}
    assert made() == {"half": True, "other": True}
    assert made() == {"half": False, "other": False}
    assert made(weight=0.25) == {"half": True, "other": True}
    assert made(weight=0.25) == {"half": False, "other": False}
    planning = {"seed": 7}
    assert made(weight=0.25) == {"half": True, "other": True}
    make.model(Path(models["base"]), 9)  # only `other` needs it
    assert made(weight=0.25) == {"half": False, "other": True}
    shard = kept / "half" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert made(weight=0.25) == {"half": True, "other": True}
    (kept / "other" / "config.json").unlink()
    assert made(weight=0.25) == {"half": False, "other": True}


def test_an_interrupted_stage_is_finished(models: dict[str, str], tmp_path: Path) -> None:
    """A stage that a kill left half-written is taken up, not used and not refused."""
    path = write(tmp_path / "multi.yml", stages(models))
    expected = make.hashes(multi(path, tmp_path / "one", keep=tmp_path / "kept")[-1].out)
    folder = tmp_path / "kept" / "half"
    for file in folder.iterdir():
        file.unlink()
    (folder / "plait_journal.jsonl").write_text("")
    (folder / "model.safetensors.partial").write_bytes(b"half")
    made = multi(path, tmp_path / "two", keep=tmp_path / "kept")
    assert made[0].why == ("it was interrupted",)
    assert make.hashes(tmp_path / "two") == expected
    assert not list(folder.glob("*.partial"))


def test_foreign_folders_are_not_written_over(models: dict[str, str], tmp_path: Path) -> None:
    """A folder that is no stage of the same name is refused, and what is in it stays, unless `--force` says otherwise."""
    path = write(tmp_path / "multi.yml", stages(models))
    theirs, merged = make.model(tmp_path / "kept" / "half", 5), tmp_path / "merged" / "half"
    plait.merge(make.recipe("linear", models["a"])).save(merged)
    for folder, said in ((theirs, "is not empty"), (merged, "is not the stage 'half'")):
        before = make.hashes(folder, "*")
        with pytest.raises(PlaitError, match=said):
            multi(path, tmp_path / "out", keep=folder.parent)
        assert make.hashes(folder, "*") == before
        multi(path, tmp_path / folder.parent.name / "out", keep=folder.parent, saving={"force": True})
        assert make.hashes(folder)["model.safetensors"] != before["model.safetensors"]


def test_row_44_written_recipe(models: dict[str, str], tmp_path: Path) -> None:
    """Beside a stage lies the user's own text, comments included, of what it needs; run by itself it makes the same bytes."""
    text = (
        f"# first\nname: half\nmerge_method: linear # mean\nmodels: [{{model: {models['a']}}}, {{model: {models['b']}}}]\n"
        f"parameters: {{weight: 1}}\n--- {{name: alone, merge_method: passthrough, models: [{{model: {models['b']}}}]}}\n"
        f"---\n# second\nname: other\nmerge_method: task_arithmetic\nbase_model: {models['base']}\n"
        "models: [{model: half}]\nparameters: {weight: 0.5}\n---\nmerge_method: passthrough\nmodels: [{model: other}]\n"
    )
    (tmp_path / "multi.yml").write_text(text)
    multi(tmp_path / "multi.yml", tmp_path / "out", keep=tmp_path / "kept")
    for name in ("half", "alone", "other"):
        folder = tmp_path / "kept" / name
        own = folder / "plait_config.yml"
        assert own.read_text() in text or name == "other"
        plait.merge(own).save(tmp_path / f"again {name}")
        assert make.hashes(tmp_path / f"again {name}") == make.hashes(folder)
    other = (tmp_path / "kept" / "other" / "plait_config.yml").read_text()
    assert "# first" in other
    assert "# mean" in other
    assert "# second" in other
    assert "alone" not in other
    plait.merge(tmp_path / "out" / "plait_config.yml").save(tmp_path / "again")
    assert make.hashes(tmp_path / "again") == make.hashes(tmp_path / "out")


def test_an_adapter_over_a_stage(models: dict[str, str], tmp_path: Path) -> None:
    """`stage+adapter` is the stage with the adapter, streamed or kept; it was once the stage alone."""
    lora = loras.lora(tmp_path / "lora", make.tensors())
    first = {"name": "half", **make.recipe("linear", models["a"], models["b"])}
    path = write(tmp_path / "multi.yml", [first, make.recipe("passthrough", f"half+{lora}")])
    multi(path, tmp_path / "out", keep=tmp_path / "kept")
    streamed = plait.merge(path)
    expected = plait.open(f"{tmp_path / 'kept' / 'half'}+{lora}")
    written = plait.open(tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    bare = plait.open(tmp_path / "kept" / "half").read(name)
    assert not torch.equal(bare, expected.read(name))
    assert all(
        same(expected.read(n), streamed.read(n)) and same(expected.read(n), written.read(n)) for n in bare_names()
    )


def bare_names() -> list[str]:
    return list(make.tensors())


def test_mistakes_are_found_before_the_first_stage(models: dict[str, str], tmp_path: Path) -> None:
    """What is wrong with a late stage is told, with its line, before anything is written; so are circles and bad names."""
    documents = stages(models)
    documents[0]["parameters"] = {"t": "much"}
    path = write(tmp_path / "multi.yml", documents)
    with pytest.raises(PlaitError, match="t cannot be 'much'") as found:
        multi(path, tmp_path / "out", keep=tmp_path / "kept")
    assert found.value.where
    assert found.value.where.line
    circle = [{"name": n, **make.recipe("linear", m)} for n, m in (("x", "y"), ("y", "x"))]
    with pytest.raises(PlaitError, match="the stages need each other"):
        multi(write(path, circle), tmp_path / "out", keep=tmp_path / "kept")
    named = {"name": "../x", **make.recipe("linear", models["a"])}
    with pytest.raises(PlaitError, match="cannot be the name of a folder"):
        multi(write(path, [named, make.recipe("linear", models["b"])]), tmp_path / "out", keep=tmp_path / "kept")
    with pytest.raises(PlaitError, match="there is no place for the stage without a name"):
        multi(write(path, stages(models)), keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / "out").exists()


def test_two_stages_in_one_folder(models: dict[str, str], tmp_path: Path, refused: Callable[..., str]) -> None:
    """OUT is no other stage's folder, by no name: nothing is written."""
    path = write(tmp_path / "multi.yml", stages(models))
    (tmp_path / "link").symlink_to(tmp_path / "kept" / "other")
    for out in (tmp_path / "kept" / "half", tmp_path / "link"):
        refused("two stages would go to one folder", "multi", path, out, "-I", tmp_path / "kept")


def test_command_line(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mergekit-multi's options run; stages that are used again are told; stages alone need no OUT."""
    path = write(tmp_path / "multi.yml", stages(models)[1:])
    common = [
        "multi",
        str(path),
        "-I",
        str(tmp_path / "kept"),
        "--random-seed",
        "1",
        "--no-cuda",
        "--lora-merge-cache",
        "x",
    ]
    with pytest.raises(SystemExit) as done:
        main(common)
    assert done.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*common, "--lazy", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert [(f["stage"], f["made"]) for f in facts] == [("half", False), ("other", False)]
    with pytest.raises(SystemExit):
        main([*common, "--no-lazy", "--out-path", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").exists()
