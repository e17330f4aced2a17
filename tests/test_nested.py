"""Recipes that stand in a model's place: streamed, with the bytes that a directory in between would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import make
import plait
from plait.errors import PlaitError
from plait.testing.checkpoints import same

INNER = {
    "slerp": {"parameters": {"t": [0.2, 0.8]}},
    "ties": {"parameters": {"weight": 0.7, "density": 0.4}},
    "tsv_m": {},
    "dare_ties": {"parameters": {"weight": 0.7, "density": 0.4}},
}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [
        str(make.model(tmp_path / name, seed, hidden=64, vocab=300)) for seed, name in enumerate(["base", "a", "b"])
    ]


def alike(one: plait.Merge, two: plait.Merge) -> bool:
    """Whether two merges have the same tensors, byte for byte."""
    return list(one.specs) == list(two.specs) and all(same(x, two.read(name)) for name, x in one)


def inner(models: list[str], method: str) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": models[0],
        "models": [{"model": m} for m in (models[1:2] if method == "slerp" else models[1:])],
        **INNER[method],
    }


def outer(models: list[str], one: Any) -> dict[str, Any]:
    listed = [{"model": m, "parameters": {"weight": 0.6, "density": 0.5}} for m in (one, models[2])]
    return {"merge_method": "ties", "base_model": models[0], "models": listed}


@pytest.mark.parametrize("method", sorted(INNER))
def test_a_merge_of_a_merge_equals_two_merges(tmp_path, models, method):
    """A recipe in a model's place gives the same bytes as merging it to a directory first, for every unit of method."""
    plait.merge(inner(models, method)).save(tmp_path / "half")
    two = plait.merge(outer(models, str(tmp_path / "half")))
    one = plait.merge(outer(models, inner(models, method)))
    assert alike(one, two)
    one.save(tmp_path / "one", threads=2)
    two.save(tmp_path / "two")
    shards = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert shards[0] == shards[1]
    assert not list(tmp_path.glob("*half*/*half*"))


def test_rows_of_a_merge_are_rows_of_its_tensor(models):
    """Any rows of a merge, asked for in any order, are those of the whole tensor."""
    for method in sorted(INNER):
        merge = plait.merge(inner(models, method))
        for name, spec in merge.specs.items():
            rows, columns = spec.matrix
            whole = merge.read(name).reshape(rows, columns)
            for start, stop in ((0, rows), (rows // 2, rows), (0, 1), (rows - 1, rows), (1, 1), (rows // 3, rows // 2)):
                assert torch.equal(merge.read(name, (start, stop)), whole[start:stop])


def test_a_recipe_file_is_a_model(tmp_path, models):
    """A path that ends in .yml, beside the recipe or from the current directory, is read as a recipe."""
    (tmp_path / "inner.yml").write_text(yaml.safe_dump(inner(models, "slerp")))
    (tmp_path / "outer.yml").write_text(yaml.safe_dump(outer(models, "inner.yml")))
    assert alike(plait.merge(tmp_path / "outer.yml"), plait.merge(outer(models, inner(models, "slerp"))))


def test_stages_of_one_file_stream_into_each_other(tmp_path, models):
    """Documents with names are models for each other; the one without a name, or the last, is the merge; the rest is told."""
    half = {"name": "half", **inner(models, "slerp")}
    lost = {"name": "lost", **inner(models, "ties")}
    path = tmp_path / "multi.yml"
    path.write_text(yaml.safe_dump_all([half, outer(models, "half"), lost]))
    merge = plait.merge(path)
    assert alike(merge, plait.merge(outer(models, inner(models, "slerp"))))
    assert any("not made: lost" in note for note in merge.plan.notes)


def test_a_circle_is_refused(tmp_path, models):
    """A recipe that is a model of itself, through any number of files, is refused before anything is read."""
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(outer(models, f"{other}.yml")))
    with pytest.raises(PlaitError, match="the recipes need each other") as found:
        plait.merge(tmp_path / "x.yml")
    assert "x.yml -> " in str(found.value)


def test_mistakes_inside_are_told_with_their_lines(tmp_path, models):
    """What is wrong in an inner recipe is told with the line where it stands in the outer file."""
    wrong = inner(models, "ties")
    wrong["parameters"]["density"] = 30
    path = tmp_path / "outer.yml"
    path.write_text(yaml.safe_dump(outer(models, wrong), sort_keys=False))
    (error,) = plait.check(path)
    line = (
        path.read_text().splitlines().index("      density: 30") + 1 if "      density: 30" in path.read_text() else 0
    )
    assert error.what == "density cannot be 30"
    assert error.where.line == line > 0


def test_a_class_is_for_models(tmp_path, models, refused):
    """A class cannot be given to a recipe that stands for a model."""
    (tmp_path / "in.yml").write_text(yaml.safe_dump(inner(models, "ties"), sort_keys=False))
    named = {"model": {"path": str(tmp_path / "in.yml")}, "override_architecture": "LlamaForCausalLM"}
    (tmp_path / "out.yml").write_text(yaml.safe_dump(outer(models, named), sort_keys=False))
    refused("override_architecture is for models, not for recipes", "merge", tmp_path / "out.yml", tmp_path / "out")


def test_the_provenance_names_all_inputs(tmp_path, models):
    """A merge of a merge records the inner one with its models and their fingerprints."""
    saved = plait.merge(outer(models, inner(models, "slerp"))).save(tmp_path / "out")
    facts = json.loads((saved.out / "plait_provenance.json").read_text())
    (inside,) = facts["nested"]
    assert inside["method"] == "slerp"
    assert [model["model"] for model in inside["models"]] == models[1::-1]
    assert all(model["files"][0]["fingerprint"] for model in inside["models"])
