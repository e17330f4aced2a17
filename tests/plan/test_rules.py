"""Rules and bricks in a recipe: which tensor gets what, and every mistake that can be told before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import make
import plait
from plait.errors import PlaitError, Problems
from plait.plan import Plan

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q0, Q3 = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 3))
UP0 = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [make.model(tmp_path / name, seed, layers=4) for seed, name in enumerate(["base", "a", "b"])]


def recipe(models: list[Path], **more: Any) -> dict[str, Any]:
    base, *others = map(str, models)
    return {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": m, "parameters": {"weight": 0.5}} for m in others],
        **more,
    }


def planned(models: list[Path], **more: Any) -> Plan:
    return plait.merge(recipe(models, **more)).plan


def methods(plan: Plan) -> dict[str, str]:
    return {step.name: step.method.name if step.method else "copy" for step in plan.steps}


def wrong(tmp_path: Path, models: list[Path], **more: Any) -> list[PlaitError]:
    """The problems of a recipe in a file, so that they have lines."""
    return plait.check(written(tmp_path, recipe(models, **more)))


def written(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_the_first_rule_that_fits_decides(models):
    """Rules are tried in order by kind, layer and name; what none fits is made by the recipe's own method."""
    plan = planned(
        models,
        rules=[
            {"when": {"kind": "norm"}, "merge_method": "linear", "parameters": {"weight": 1}},
            {"when": {"layer": "0-1", "kind": ["attention", "norm"]}, "merge_method": "ties"},
            {"when": {"name": "/lm_head|embed/"}, "copy": "base"},
        ],
    )
    found = methods(plan)
    assert found[NORM] == found["model.layers.0.input_layernorm.weight"] == "linear"
    assert found[Q0] == "ties"
    assert found[Q3] == found[UP0] == "task_arithmetic"
    assert found[EMBED] == found[HEAD] == "copy"


def test_a_rule_reaches_layers_to_its_last(models):
    """`layer: 1-2` is layers 1 and 2 of the output; a list takes several, a number one."""
    found = methods(planned(models, rules=[{"when": {"layer": "1-2"}, "merge_method": "ties"}]))
    assert {i for i in range(4) if found[f"model.layers.{i}.mlp.up_proj.weight"] == "ties"} == {1, 2}
    found = methods(planned(models, rules=[{"when": {"layer": [0, "3"]}, "merge_method": "ties"}]))
    assert {i for i in range(4) if found[f"model.layers.{i}.mlp.up_proj.weight"] == "ties"} == {0, 3}


def test_a_rules_values_go_first(models):
    """A rule's parameter comes before the model's own; what it does not give is looked for as always."""
    plan = planned(models, rules=[{"when": {"name": "mlp"}, "parameters": {"weight": 2}}], parameters={"lambda": 0.3})
    given = [(g.parameter, g.value, g.scope) for g in plan.step(UP0).settings]
    assert given[:2] == [("weight", 2.0, "the rule")] * 2
    assert ("lambda", 0.3, "the recipe") in given
    assert {(g.value, g.scope) for g in plan.step(Q0).settings if g.parameter == "weight"} == {(0.5, "the model")}


def test_otherwise_copies(models):
    """`otherwise: copy base` leaves all that no rule fits as it is in the base, and says so of the others' tensors."""
    merge = plait.merge(recipe(models, rules=[{"when": {"kind": "mlp"}}], otherwise="copy base"))
    base = plait.open(models[0])
    for name in (Q0, EMBED, NORM):
        assert torch.equal(merge.read(name), base.read(name))
    assert not torch.equal(merge.read(UP0), base.read(UP0))
    reasons = {d.reason for d in merge.plan.dropped}
    assert reasons == {f"'otherwise' copies from {models[0]}"}


def test_otherwise_error_names_what_no_rule_fits(tmp_path, models):
    """`otherwise: error` is for recipes that must speak of every tensor: what is left is named, with the line."""
    (error,) = wrong(tmp_path, models, rules=[{"when": {"layer": "0-3"}}], otherwise="error")
    assert error.what == "no rule fits 3 tensors"
    assert EMBED in str(error)
    assert error.where.line > 0


def test_a_copied_tensor_needs_no_fitting_shape(tmp_path):
    """A rule that copies an embedding from one model lets the others have a vocabulary of another length."""
    base, other = make.model(tmp_path / "base", 0), make.model(tmp_path / "other", 1, vocab=24)
    rules = [{"when": {"kind": ["embedding", "head"]}, "copy": "base"}]
    merge = plait.merge(recipe([base, other], rules=rules))
    assert merge.specs[EMBED].shape == (16, 8)
    assert merge.config["vocab_size"] == 16


def test_a_rules_method_without_a_base_sees_the_listed_models(models):
    """linear in a rule of a recipe with a base averages the models that are listed; the base is not mixed in unasked."""
    merge = plait.merge(recipe(models, rules=[{"when": {"kind": "norm"}, "merge_method": "linear"}]))
    a, b = (plait.open(m).read(NORM) for m in models[1:])
    assert torch.equal(merge.read(NORM), 0.5 * a + 0.5 * b)


def test_each_module_may_have_its_method(models):
    """`merge_method` under a module holds for that module."""
    base, a, b = map(str, models)
    listed = [{"model": m, "parameters": {"weight": 0.5}} for m in (a, b)]
    tree = {
        "merge_method": "linear",
        "base_model": base,
        "modules": {"default": {"merge_method": "ties", "models": listed}},
    }
    assert set(methods(plait.merge(tree).plan).values()) == {"ties"}


def test_bricks_of_recipe_and_rule(models):
    """Bricks stand around every method; a rule's own replace the recipe's, and an empty list takes them away."""
    plan = planned(
        models,
        pre=["trim"],
        post=[{"scale": {"factor": [0.0, 1.0]}}, "svc"],
        rules=[{"when": {"kind": "norm"}, "pre": [], "post": []}, {"when": {"name": "mlp"}, "post": "norm_guard"}],
    )
    found = methods(plan)
    assert found[Q0] == "trim + task_arithmetic + scale + svc"
    assert found[NORM] == "task_arithmetic"
    assert found[UP0] == "trim + task_arithmetic + norm_guard"
    factors = [
        g.value for i in range(4) for g in plan.step(Q0.replace("0", str(i))).settings if g.parameter == "scale.factor"
    ]
    assert np.allclose(factors, [0, 1 / 3, 2 / 3, 1], atol=1e-15)


@pytest.mark.parametrize(
    ("more", "what", "do"),
    [
        ({"rules": [{"when": {"kind": "nrom"}}]}, "there is no kind of tensor 'nrom'", "write norm"),
        ({"rules": [{"when": {"kind": 3}}]}, "that is not a word or a list of words", "write one, or"),
        ({"rules": [{"when": {"module": []}}]}, "that is not a word or a list of words", "write one, or"),
        ({"rules": [{"when": {"kind": "mlp"}, "copy": [1]}]}, "a rule copies from one model", "write 'copy: base'"),
        (
            {"rules": [{"when": {"kind": "mlp"}, "copy": "base"}], "base_model": None, "merge_method": "linear"},
            "'copy base' needs a base_model",
            "add 'base_model:'",
        ),
        (
            {
                "rules": [{"when": {"kind": "mlp"}}],
                "otherwise": "copy base",
                "base_model": None,
                "merge_method": "linear",
            },
            "'copy base' needs a base_model",
            "add 'base_model:'",
        ),
        ({"rules": [{"when": {"filter": "mlp"}}]}, "'filter' is not a key of a rule's 'when'", "write 'name'"),
        ({"rules": [{"when": {"layer": "3-1"}}]}, "the layers of a rule cannot be read", "write 0-15"),
        ({"rules": [{"when": {"layer": True}}]}, "the layers of a rule cannot be read", "write 0-15"),
        ({"rules": [{"when": {}}]}, "'when' says nothing", "otherwise"),
        ({"rules": [{"merge_method": "ties"}]}, "'when' is missing", "add 'when:'"),
        ({"rules": [{"when": {"name": "/(/"}}]}, "is not a regular expression", "mend it"),
        ({"rules": [{"when": {"name": "q_prj"}}]}, "the rule fits no tensor", "mend its 'when'"),
        (
            {"rules": [{"when": {"kind": "mlp"}}, {"when": {"kind": "mlp"}}]},
            "that an earlier rule leaves",
            "move it up",
        ),
        ({"rules": [{"when": {"kind": "mlp"}, "merge_method": "teis"}]}, "'teis' is unknown", "did you mean ties?"),
        (
            {"rules": [{"when": {"kind": "mlp"}, "merge_method": "slerp", "parameters": {"t": 0.5}}]},
            "slerp takes 1 model besides the base",
            "choose a method",
        ),
        ({"rules": [{"when": {"kind": "mlp"}, "parameters": {"wieght": 1}}]}, "no parameter 'wieght'", "weight"),
        (
            {"rules": [{"when": {"kind": "mlp"}, "copy": "base", "merge_method": "ties"}]},
            "copies, or it merges",
            "keep",
        ),
        ({"rules": [{"when": {"kind": "mlp"}, "copy": "elsewhere/model"}]}, "elsewhere/model", ""),
        ({"otherwise": "error"}, "'otherwise' without rules changes nothing", "add 'rules:'"),
        ({"rules": [{"when": {"kind": "mlp"}}], "otherwise": "skip"}, "'otherwise' cannot be read", "write one"),
        ({"pre": ["trm"]}, "the brick 'trm' is unknown", "did you mean trim?"),
        ({"pre": ["svc"]}, "svc does not stand before a method", "move it to 'post:'"),
        ({"post": [{"scale": None}]}, "scale needs 'factor'", "write scale: {factor: …}"),
        ({"post": [{"svc": {"alhpa": 1}}]}, "svc has no parameter 'alhpa'", "did you mean 'alpha'?"),
        ({"pre": [{"trim": {"density": 30}}]}, "density cannot be 30", "not a percentage"),
        ({"pre": [{"trim": 0.3}]}, "the parameters of trim are a mapping", "write trim: {PARAMETER: VALUE}"),
        ({"pre": [3]}, "a brick is a name", "write trim"),
    ],
)
def test_mistakes_are_found_before_the_work(tmp_path, models, more, what, do):
    """Each mistake in a rule or a brick is told with its line and its mend, before a weight is read."""
    found = wrong(tmp_path, models, **more)
    assert any(what in str(error) and do in str(error) for error in found), "\n".join(map(str, found))
    assert all(error.where is None or error.where.line > 0 for error in found)


def test_what_a_rule_cannot_copy(tmp_path, models, refused):
    """A rule copies neither from a model of another slice nor what its model lacks: told with the rule's line, no OUT."""
    weights = make.tensors(2, layers=4)
    del weights[UP0]
    short = make.write(tmp_path / "short", weights)
    copy = [{"when": {"layer": 0}, "copy": str(short)}]
    path = written(tmp_path, recipe([models[0], models[1], short], rules=copy))
    told = refused("has nothing to copy", "merge", path, tmp_path / "out", "--allow-crimes")
    assert f"wanted: {UP0}" in told
    parts = [{"sources": [{"model": str(m), "layer_range": [i, i + 1]}]} for i, m in enumerate(models)]
    copy = [{"when": {"layer": 0}, "copy": str(models[2])}]
    path = written(tmp_path, {"merge_method": "passthrough", "slices": parts, "rules": copy})
    told = refused("takes no part in what the rule is for", "merge", path, tmp_path / "out")
    assert "recipe.yml:" in told


def test_bricks_want_a_base(tmp_path, models):
    """A brick works on differences, so a recipe without a base is refused."""
    tree = {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}
    with pytest.raises((PlaitError, Problems), match="svc needs a base_model"):
        plait.merge({**tree, "post": ["svc"]})


def test_explain_prints_the_rule(tmp_path, models, capsys):
    """`plait explain` says which rule applied, and on which line each of its numbers stands."""
    from plait.cli import main

    path = tmp_path / "recipe.yml"
    rules = [{"when": {"kind": "mlp", "layer": "0-1"}, "merge_method": "ties", "parameters": {"density": 0.25}}]
    path.write_text(yaml.safe_dump(recipe(models, rules=rules), sort_keys=False))
    with pytest.raises(SystemExit):
        main(["explain", str(path), UP0])
    said = capsys.readouterr().out
    line = [text.strip() for text in path.read_text().splitlines()].index("density: 0.25") + 1
    assert f"rule: layer 0-1, kind mlp ({path}:" in said
    assert "density = 0.25" in said
    assert f"the rule, {path}:{line}:" in said
