"""Plans: which tensors, which values, which dtypes; every decision and every refusal that headers allow."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import make
import plait
from plait.bricks import bricks
from plait.errors import PlaitError, PlanError, Problems
from plait.estimate import estimate
from plait.facts import plan_json
from plait.kernels import fused
from plait.methods import registry
from plait.plan import Plan
from plait.plan.choice import Choices
from plait.plan.losses import losses
from plait.plan.steps import Builder
from plait.strands import bands
from plait.testing.checkpoints import same

Q0, Q1 = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))


def planned(recipe: Any, **options: Any) -> Plan:
    return plait.merge(recipe, **options).plan


def given(plan: Plan, tensor: str, parameter: str) -> list[tuple[object, str]]:
    """(value, scope) of a parameter for a tensor."""
    return [(g.value, g.scope) for g in plan.step(tensor).settings if g.parameter == parameter]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [make.model(tmp_path / name, seed, layers=4) for seed, name in enumerate("abc")]


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


PRECEDENCE = """\
merge_method: linear
modules:
  {module}:
    parameters:
      weight: [{{filter: mlp, value: 3}}]
    slices:
      - parameters:
          weight: [{{filter: k_proj, value: 2}}, {{filter: mlp.up, value: 2.5}}]
        sources:
          - model: {a}
            layer_range: [0, 4]
            parameters:
              weight: [{{filter: q_proj, value: 1}}]
          - model: {b}
            layer_range: [0, 4]
            parameters: {{weight: 7}}
parameters:
  weight: 4
  normalize: false
"""


def test_precedence(models: list[Path]) -> None:
    """The nearest scope that has a value for a tensor gives it: model, slice, module, recipe, default; and its line is kept."""
    module = plait.inspect(models[0]).arch.modules[0].name
    plan = planned(PRECEDENCE.format(module=module, a=models[0], b=models[1]))
    layer = "model.layers.2."
    expected = {
        "self_attn.q_proj": (1, "the model", 13),
        "self_attn.k_proj": (2, "the slice", 8),
        "mlp.up_proj": (2.5, "the slice", 8),
        "mlp.down_proj": (3, "the module", 5),
        "self_attn.o_proj": (4, "the recipe", 18),
    }
    for name, (value, scope, line) in expected.items():
        first, second = (g for g in plan.step(f"{layer}{name}.weight").settings if g.parameter == "weight")
        assert (first.value, first.scope, first.where and first.where.line) == (value, scope, line), name
        assert (second.value, second.scope) == (7, "the model")
    assert given(plan, "lm_head.weight", "normalize") == [(False, "the recipe")]
    assert given(planned(make.recipe("linear", *models)), Q0, "normalize") == [(True, "the default")]


def test_shared_parameters_are_not_a_model_s(models: list[Path]) -> None:
    """A shared parameter under a model is refused, not passed over."""
    recipe = make.recipe("slerp", models[1], base=models[0], parameters={})
    recipe["models"][0]["parameters"] = {"t": 0.5}
    with pytest.raises(PlaitError, match="'t'"):
        planned(recipe)


def slices(*parts: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"slices": list(parts), **rest}


def taking(*sources: tuple[Path, int, int], weight: Any = 1.0, **rest: Any) -> dict[str, Any]:
    made = [{"model": str(m), "layer_range": [i, j], "parameters": {"weight": weight}} for m, i, j in sources]
    return {"sources": made, **rest}


def test_gradients_restart(models: list[Path]) -> None:
    """A gradient runs over the layers of each slice anew; a single layer has its last value, what is outside its first."""
    ramp = [0.0, 1.0]
    parts = [((models[0], 0, 3),), ((models[0], 1, 3),), ((models[0], 3, 4),)]
    recipe = slices(
        *(taking(*part, weight=[{"value": ramp}]) for part in parts),
        merge_method="linear",
        parameters={"normalize": False},
    )
    plan = planned(recipe)
    found = [given(plan, f"model.layers.{i}.mlp.up_proj.weight", "weight")[0][0] for i in range(6)]
    assert found == [0.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    assert [given(plan, n, "weight")[0][0] for n in ("model.embed_tokens.weight", "lm_head.weight")] == [0.0, 0.0]


def test_filters_number_as_the_source_does(models: list[Path]) -> None:
    """A model's filter is held against the tensor's name in that model, a shared one against the output's name."""
    own = [{"filter": "layers.3.", "value": 9.0}, {"value": 1.0}]
    recipe = slices(
        taking((models[0], 0, 2), weight=1.0),
        taking((models[1], 2, 4), weight=own),
        merge_method="linear",
        parameters={"normalize": [{"filter": "layers.3.", "value": False}, {"value": True}]},
    )
    plan = planned(recipe)
    numbers = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    assert [given(plan, n, "weight")[0][0] for n in numbers] == [1, 1, 1, 9]
    assert [given(plan, n, "normalize")[0][0] for n in numbers] == [True, True, True, False]
    assert [plan.step(n).inputs[0].name for n in numbers][2:] == [numbers[2], numbers[3]]
    shifted = planned(slices(taking((models[1], 3, 4), weight=own), merge_method="linear"))
    assert shifted.step(numbers[0]).inputs[0].name == numbers[3]
    assert given(shifted, numbers[0], "weight")[0][0] == 9


def test_base_of_a_slice(models: list[Path]) -> None:
    """`base_model` in a slice replaces the recipe's there, and only there."""
    a, b, c = models
    recipe = slices(
        taking((a, 0, 2), (c, 0, 2)),
        taking((b, 2, 4), (c, 2, 4), base_model=str(b)),
        merge_method="task_arithmetic",
        base_model=str(a),
    )
    plan = planned(recipe)
    refs = [str(plan.models[step.base.model].ref) for step in map(plan.step, (Q0, Q0.replace("0", "3"))) if step.base]
    assert refs == [str(a), str(b)]
    assert str(plan.models[plan.donor].ref) == str(a)


def test_row_3_post_weights_fewer_sources(models: list[Path]) -> None:
    """What comes after the layers takes from every source of the last slice, though the first has fewer."""
    plan = planned(
        slices(taking((models[0], 0, 2)), taking((models[0], 2, 4), (models[1], 2, 4)), merge_method="linear")
    )
    assert len(plan.step("model.embed_tokens.weight").inputs) == 1
    assert len(plan.step("lm_head.weight").inputs) == 2
    assert len(plan.step("model.norm.weight").inputs) == 2


def test_row_24_base_of_linear(models: list[Path]) -> None:
    """A base that linear does not use as one is an input like the others, and the plan shows it as such."""
    step = planned(make.recipe("linear", models[1], base=models[0])).step(Q0)
    assert (len(step.inputs), step.base) == (2, None)


# ── tensors ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def accounted(plan: Plan) -> bool:
    """Whether each tensor of each model is read by a step or listed as dropped, and not both."""
    used = {(source.model, source.name) for step in plan.steps for source in step.sources()}
    lost = [(d.model, name) for d in plan.dropped for name in d.names]
    every = {(i, name) for i, model in enumerate(plan.models) for name in model.opened.checkpoint.specs}
    return len(lost) == len(set(lost)) and not used & set(lost) and used | set(lost) == every


def test_nothing_vanishes(models: list[Path], tmp_path: Path) -> None:
    """Each tensor that does not reach the output is in the plan with a reason."""
    donor = make.model(tmp_path / "d", 9, layers=4)
    recipe = slices(
        taking((models[0], 0, 2), (models[2], 1, 3)),
        taking((models[1], 3, 4)),
        merge_method="linear",
        base_model=str(donor),
    )
    plan = planned(recipe)
    assert accounted(plan)
    reasons = {(str(plan.models[d.model].ref), d.reason): len(d.names) for d in plan.dropped}
    assert reasons == {
        (str(models[0]), "the recipe does not take this layer"): 18,
        (str(models[0]), "the last slice does not take from it"): 2,
        (str(models[2]), "the recipe does not take this layer"): 18,
        (str(models[2]), "the last slice does not take from it"): 2,
        (str(models[1]), "the recipe does not take this layer"): 27,
        (str(models[1]), "the first slice does not take from it"): 1,
        (str(donor), "it gives the config and the tokenizer only"): 39,
    }


def test_row_1_extra_tensors(tmp_path: Path) -> None:
    """Tensors that no table of architectures knows are merged like the others."""
    made = make.tensors(1)
    for layer in range(2):
        for name in ("self_attn.q_proj.bias", "mlp.up_proj.bias", "strange.thing"):
            made[f"model.layers.{layer}.{name}"] = torch.full((8,), float(layer))
    made["odd.one.out"] = torch.ones(3)
    merge = plait.merge(make.recipe("linear", make.write(tmp_path / "a", made), make.write(tmp_path / "b", made)))
    assert set(merge.specs) == set(made)
    assert [name for name, x in merge if not torch.allclose(x, made[name], atol=1e-6)] == []


@pytest.mark.parametrize("first", ["tied", "untied"])
def test_row_10_tied_and_untied(first: str, tmp_path: Path) -> None:
    """A tied model beside an untied one gives its embedding for the head; the output has a head and its config says so."""
    tied, untied = make.model(tmp_path / "t", 1, tied=True), make.model(tmp_path / "u", 2)
    merge = plait.merge(make.recipe("linear", *((tied, untied) if first == "tied" else (untied, tied))))
    assert merge.config["tie_word_embeddings"] is False
    assert any("stands in for it" in note for note in merge.plan.notes)
    embedding, head = load_file(tied / "model.safetensors"), load_file(untied / "model.safetensors")
    assert torch.allclose(
        merge.read("lm_head.weight"), (embedding["model.embed_tokens.weight"] + head["lm_head.weight"]) / 2
    )
    assert accounted(merge.plan)


def test_tied_stays_tied(tmp_path: Path) -> None:
    """Tied models give a tied one; a head that one of them stores all the same is dropped with the reason."""
    made = make.tensors(2, tied=True)
    stored = made | {"lm_head.weight": made["model.embed_tokens.weight"].clone()}
    a = make.model(tmp_path / "a", 1, tied=True)
    b = make.write(tmp_path / "b", stored, settings=make.config(made))
    plan = planned(make.recipe("linear", a, b))
    assert "lm_head.weight" not in plan.specs
    assert plan.config["tie_word_embeddings"] is True
    assert [(d.model, d.names, d.reason) for d in plan.dropped] == [(1, ("lm_head.weight",), "tied to the embedding")]


def test_missing(models: list[Path], tmp_path: Path) -> None:
    """A model that lacks tensors is one problem, with their names, both models and no weight read."""
    made = {name: x for name, x in make.tensors(5, layers=4).items() if "layers.1.mlp" not in name}
    short = make.write(tmp_path / "short", made)
    with pytest.raises(PlanError) as caught:
        planned(make.recipe("linear", models[0], short))
    assert str(caught.value).startswith(f"{short} lacks 3 tensors that {models[0]} has")
    assert "model.layers.1.mlp.gate_proj.weight" in str(caught.value)


@pytest.mark.parametrize("method", ["model_stock", "nuslerp"])
def test_a_method_that_cannot_do_without_a_model(method: str, models: list[Path], tmp_path: Path) -> None:
    """Where too few models have a tensor for the method, the base's is copied, and the plan says why the others' are not."""
    made = {name: x for name, x in make.tensors(5, layers=4).items() if name not in (Q1, "model.norm.weight")}
    short = make.write(tmp_path / "short", made)
    plan = planned(make.recipe(method, models[1], short, base=models[0]), allow_crimes=True)
    assert accounted(plan)
    (lost,) = plan.dropped
    assert (str(plan.models[lost.model].ref), lost.names) == (str(models[1]), (Q1, "model.norm.weight"))
    assert lost.reason == f"{method} cannot do with the models that have it, so that of {models[0]} is copied"
    assert plan.step(Q1).note == f"copied: {method} cannot do with the models that have it"


def test_a_tensor_without_a_reason_is_refused(models: list[Path]) -> None:
    """Whatever made the steps: what is in none of them, and has no reason, is told."""
    merge = plait.merge(make.recipe("linear", *models[:2]))
    recipe, opened = merge.plan.recipe, merge.plan.models
    builder = Builder(recipe, opened, Choices(recipe, registry(), bricks()), merge.plan.options)
    with pytest.raises(Problems) as caught:
        losses(opened, bands(recipe, opened, 0), builder)
    assert [p.what for p in caught.value.problems] == [
        f"39 tensors of {m} would not reach the output" for m in models[:2]
    ]
    assert all(p.wanted and p.found and p.do for p in caught.value.problems)


def test_a_value_for_some_tensors_only(models: list[Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    """A required parameter that is given for some tensors only is told with one that has none, and the line to add."""
    some = {"weight": [{"filter": "mlp", "value": 1}]}
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", *models) | {"parameters": some})
    told = refused("linear needs weight for ", "merge", path, tmp_path / "out")
    assert re.search(r"r\.yml:1:\d+: linear needs weight for ", told)
    assert "no value for model.embed_tokens.weight" in told
    assert "add a line without a filter: weight: …" in told


def test_slices_of_two_stacks(models: list[Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    """Slices of a model with two stacks of layers do not say which they are for: the names to write are told."""
    made = make.tensors(1)
    made |= {n.replace("model.", "model.vision."): x for n, x in make.tensors(2).items() if ".layers." in n}
    both = make.write(tmp_path / "both", made)
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [{"model": str(both), "layer_range": [0, 1]}]}]}
    path = make.write_json(tmp_path / "r.yml", recipe)
    told = refused("slices need a model with one stack of layers", "merge", path, tmp_path / "out")
    assert "the modules text_decoder, vision_tower" in told


def test_shapes(models: list[Path], tmp_path: Path) -> None:
    """Different shapes are told together, and different vocabularies with the option that cuts them."""
    wide = make.model(tmp_path / "wide", 1, layers=4, hidden=16, vocab=16)
    with pytest.raises(PlaitError, match="merge models of one size"):
        planned(make.recipe("linear", models[0], wide))
    long = make.model(tmp_path / "long", 1, layers=4, vocab=20)
    with pytest.raises(PlanError, match="--unsafe-truncate-embeddings") as caught:
        planned(make.recipe("linear", models[0], long))
    assert "lm_head.weight" in caught.value.what
    assert "[20, 8]" in str(caught.value.found)


@pytest.mark.parametrize("first", [0, 1])
def test_row_15_truncated(first: int, models: list[Path], tmp_path: Path) -> None:
    """Cut vocabularies have the rows of the shortest, in the tensors and in the config."""
    pair = [models[0], make.model(tmp_path / "long", 1, layers=4, vocab=20)]
    merge = plait.merge(make.recipe("linear", pair[first], pair[1 - first]), truncate_embeddings=True)
    a, b = (load_file(folder / "model.safetensors")["lm_head.weight"][:16] for folder in pair)
    assert merge.config["vocab_size"] == 16
    assert same(merge.read("lm_head.weight"), (a + b) / 2)
    assert same(merge.read("lm_head.weight", (3, 9)), ((a + b) / 2)[3:9])


def test_depths(models: list[Path], tmp_path: Path) -> None:
    """Whole models of different depth, and layers that are not there, are refused with the numbers."""
    deep = make.model(tmp_path / "deep", layers=6)
    with pytest.raises(PlanError, match="different numbers of layers") as caught:
        planned(make.recipe("linear", models[0], deep))
    assert caught.value.found == f"{models[0]}: 4, {deep}: 6"
    with pytest.raises(PlanError, match=r"within \[0, 4\]"):
        planned(slices(taking((models[0], 2, 5)), merge_method="linear"))


@pytest.mark.parametrize("span", [(3, 1), (1, 1), (-1, 2)])
def test_row_14_negative_and_reversed_ranges(span: tuple[int, int], models: list[Path]) -> None:
    """A range of layers that is empty, reversed or negative is an error."""
    with pytest.raises(PlaitError, match=r"layer_range|layer"):
        planned(slices(taking((models[0], *span)), merge_method="linear"))


def test_row_27_layer_lists(tmp_path: Path) -> None:
    """A config's per-layer lists follow the layers that are taken."""
    kinds = ["sliding_attention", "full_attention"] * 2
    folder = make.model(tmp_path / "a", layers=4, settings={"layer_types": kinds})
    plan = planned(slices(taking((folder, 0, 3)), taking((folder, 2, 4)), merge_method="linear"))
    assert plan.config["num_hidden_layers"] == 5
    assert plan.config["layer_types"] == [*kinds[:3], *kinds[2:]]


def test_architectures(models: list[Path], tmp_path: Path) -> None:
    """Models of different architectures are refused, unless the crime is allowed."""
    other = make.model(tmp_path / "m", layers=4, settings={"architectures": ["MistralForCausalLM"]})
    recipe = make.recipe("linear", models[0], other)
    with pytest.raises(PlanError, match="--allow-crimes"):
        planned(recipe)
    assert planned(recipe, allow_crimes=True).config["architectures"] == ["LlamaForCausalLM"]


# ── dtypes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("inputs", "settings", "expected"),
    [
        ((BF16, BF16), {}, BF16),
        ((F16, BF16), {}, F32),
        ((BF16, F32), {}, F32),
        ((F64, BF16), {}, F64),
        ((F32, F32), {"dtype": "bfloat16"}, BF16),
        ((BF16, BF16), {"dtype": "float32", "out_dtype": "float16"}, F16),
        ((F16, F16), {"out_dtype": "float64"}, F64),
    ],
)
@pytest.mark.parametrize("method", ["linear", "arcee_fusion"])
def test_row_8_dtypes(
    method: str,
    inputs: tuple[torch.dtype, torch.dtype],
    settings: dict[str, str],
    expected: torch.dtype,
    tmp_path: Path,
) -> None:
    """The output's dtype is out_dtype, else dtype, else the inputs' own or the one that holds both; config.json says the same."""
    a, b = (make.model(tmp_path / str(i), i, layers=1, dtype=dtype) for i, dtype in enumerate(inputs))
    recipe = make.recipe("linear", a, b) if method == "linear" else make.recipe(method, b, base=a, parameters={})
    merge = plait.merge(recipe | settings)
    assert {x.dtype for _, x in merge} == {expected}
    assert merge.config["dtype"] == str(expected).removeprefix("torch.")


def test_float64_is_computed_in_float64(tmp_path: Path) -> None:
    """float64 inputs lose nothing on the way: the result is float64 arithmetic's, and one rounding for float32."""
    folders = [make.model(tmp_path / str(i), i, layers=1, dtype=F64) for i in range(2)]
    a, b = (load_file(f / "model.safetensors")[Q0].numpy() for f in folders)
    recipe = make.recipe("task_arithmetic", folders[1], base=folders[0], parameters={"weight": 0.3})
    exact = a + (b - a) * 0.3
    assert np.array_equal(plait.merge(recipe).read(Q0).numpy(), exact)
    assert np.array_equal(plait.merge(recipe | {"out_dtype": "float32"}).read(Q0).numpy(), exact.astype(np.float32))


def test_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    """bfloat16 inputs are added up in float32 and rounded once, whatever `dtype` says."""
    folders = [make.model(tmp_path / str(i), i, layers=1, dtype=BF16) for i in range(3)]
    x = [load_file(f / "model.safetensors")[Q0].double() for f in folders]
    recipe = make.recipe("linear", *folders, parameters={"weight": 0.25, "normalize": False})
    exact = ((x[0] + x[1] + x[2]) * 0.25).to(BF16)
    assert same(plait.merge(recipe).read(Q0), exact)
    assert same(plait.merge(recipe | {"dtype": "bfloat16"}).read(Q0), exact)


@pytest.mark.parametrize("values", [torch.arange(6), torch.tensor([True, False]), torch.tensor(7, dtype=torch.uint8)])
def test_integers(values: torch.Tensor, tmp_path: Path) -> None:
    """Integers and booleans are copied as they are, whatever dtype is asked for; models that differ in them are refused."""
    made = make.tensors(1) | {"model.position_ids": values}
    a, b = make.write(tmp_path / "a", made), make.write(tmp_path / "b", made)
    recipe = make.recipe("linear", a, b, dtype="float16")
    assert same(plait.merge(recipe).read("model.position_ids"), values)
    make.write(b, made | {"model.position_ids": ~values if values.dtype == torch.bool else values + 1})
    with pytest.raises(PlaitError, match="the models differ in it") as caught:
        plait.merge(recipe).save(tmp_path / "out")
    assert str(b) in str(caught.value)
    make.write(b, made | {"model.position_ids": values.float()})
    with pytest.raises(PlanError, match="differ in the dtype"):
        plait.merge(recipe)


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_row_9_int64_dtype(key: str, models: list[Path]) -> None:
    """Weights are never written as integers."""
    with pytest.raises(PlaitError, match="'int64' would destroy the weights"):
        planned(make.recipe("linear", models[0], **{key: "int64"}))


def test_row_2_fp8(tmp_path: Path) -> None:
    """Codes without scales are refused: by their dtype where the config does not tell, and by name where it does."""
    made = make.tensors(1)
    made[Q0] = made[Q0].to(torch.float8_e4m3fn)
    folder = make.write(tmp_path / "a", made)
    with pytest.raises(PlanError, match="F8_E4M3 cannot be merged"):
        planned(make.recipe("linear", folder, dtype="bfloat16"))
    make.write(folder, made, settings=make.config(made) | {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(PlaitError, match=r"quantised with fp8, cannot be read: .*q_proj.weight"):
        planned(make.recipe("linear", folder))


# ── the plan as data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json(models: list[Path]) -> None:
    """A plan is plain JSON: every step with its inputs, values and place; sizes add up."""
    plan = planned(
        make.recipe("ties", *models[1:], base=models[0], parameters={"weight": 0.3, "density": [0, 1]}),
        shard_size=2000,
    )
    facts = plan_json(plan, estimate(plan))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert [step["name"] for step in facts["steps"]] == list(plan.specs)
    assert {step["shard"] for step in facts["steps"]} == {shard["file"] for shard in facts["shards"]}
    assert facts["totals"]["write_bytes"] == sum(shard["bytes"] for shard in facts["shards"])
    assert facts["totals"]["read_bytes"] == 3 * sum(spec.nbytes for spec in plan.specs.values())


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("method", ["linear", "dare_ties", "della", "model_stock"])
def test_seconds(method: str, memory: bool, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of each kind of step is run from files, on whatever system, and they are closed."""
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    read, real = Counter[str](), fused.Merged.write

    def spy(merged: fused.Merged, *given: Any) -> bool:
        read.update("file" if x.place.file >= 0 else "memory" for x in merged.inputs)
        return real(merged, *given)

    monkeypatch.setattr(fused.Merged, "write", spy)
    plan = planned(make.recipe(method, *models[1:], base=models[0], parameters={"weight": 0.5, "density": 0.5}))
    assert estimate(plan).seconds > 0  # the models' own files stay open
    before = sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else []
    estimate(plan)
    assert set(read) == {"memory" if method == "della" else "file"}  # rows are read before they are ranked
    assert before == (sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else [])


def test_all_problems_at_once(models: list[Path], tmp_path: Path) -> None:
    """What is wrong in different places is told in one go."""
    made = {n: x[:, :4].clone() if n == Q0 else x for n, x in make.tensors(5, layers=4, vocab=20).items() if n != Q1}
    with pytest.raises(Problems) as caught:
        planned(make.recipe("linear", models[0], make.write(tmp_path / "odd", made)))
    assert len(caught.value.problems) == 3


def test_linear_time(tmp_path: Path) -> None:
    """Planning takes time in proportion to the tensors: eight times as many take less than twenty times as long."""
    pairs = [[make.model(tmp_path / f"{n}-{i}", i, layers=n, hidden=4) for i in range(2)] for n in (55, 440)]
    seconds: list[list[float]] = [[], []]
    for _ in range(3):
        for times, pair in zip(seconds, pairs, strict=True):
            begun = time.process_time()
            plait.merge(make.recipe("linear", *pair))
            times.append(time.process_time() - begun)
    small, large = map(statistics.median, seconds)
    assert large / small < 20
