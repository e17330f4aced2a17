"""What only some models have: modules, heads, layers for prediction; and models of different architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import make
import plait
from align.variants import other, sub
from arch.zoo import forward, load, pen, save
from plait.errors import PlaitError, PlanError
from plait.plan import Plan
from plait.testing.checkpoints import same

__all__ = ["other", "pen"]

Other = Callable[..., Path]


def accounted(plan: Plan) -> bool:
    """Whether each tensor of each model is read by a step or listed with a reason, and not both."""
    used = {(source.model, source.name) for step in plan.steps for source in step.sources()}
    lost = [(d.model, name) for d in plan.dropped for name in d.names]
    every = {(i, name) for i, model in enumerate(plan.models) for name in model.opened.checkpoint.specs}
    return len(lost) == len(set(lost)) and not used & set(lost) and used | set(lost) == every


def only(prefix: str, new: str) -> Callable[[str], str | None]:
    """Keeps the tensors under a prefix, which becomes another; and the head."""
    return lambda n: new + n.removeprefix(prefix) if n.startswith(prefix) else n if n == "lm_head.weight" else None


#: zoo's name, text model from it, class, model_type, prefix of the text stack
GRAFTS = [
    ("llava", sub((r"^language_model\.", "")), "LlamaForCausalLM", "language_model.model."),
    ("qwen2-vl", str, "Qwen2ForCausalLM", "model."),
    ("qwen3-vl", sub((r"^model\.language_model\.", "model.")), "Qwen3ForCausalLM", "model.language_model."),
    ("gemma3-vl", sub((r"^language_model\.", "")), "Gemma3ForCausalLM", "language_model.model."),
    ("idefics3", sub((r"^model\.text_model\.", "model.")), "LlamaForCausalLM", "model.text_model."),
]


@pytest.mark.parametrize(("name", "rename", "cls", "text"), GRAFTS, ids=[g[0] for g in GRAFTS])
@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "slerp"])
def test_graft(
    name: str, rename: Callable[[str], str], cls: str, text: str, method: str, pen: Path, other: Other, tmp_path: Path
) -> None:
    """A text model merges into a vision-language model's text stack; the rest is the base's, with its processors; it runs."""
    base = other(name, "base", seed=5)
    (base / "preprocessor_config.json").write_text("{}")
    heads = ("lm_head.weight", "language_model.lm_head.weight")
    tune = other(
        name,
        "tune",
        lambda n: rename(n) if n.startswith(text) or n in heads else None,
        architectures=[cls],
        model_type="text",
    )
    whole = other(name, "whole")
    parameters = {"t": 0.5} if method == "slerp" else {"weight": 0.5}
    models = [base, tune] if method == "linear" else [tune]
    merge = plait.merge(make.recipe(method, *models, base=base, parameters=parameters))
    assert accounted(merge.plan)
    same_again = plait.merge(
        make.recipe(method, *([base, whole] if method == "linear" else [whole]), base=base, parameters=parameters)
    )
    was = plait.open(base)
    for n, x in merge:
        inside = n.startswith(text) or n in heads
        assert same(x, same_again.read(n) if inside else was.read(n)), n
        assert (merge.plan.step(n).note == "copied: no other model has it") == (not inside)
    assert any("has no" in note and str(tune) in note for note in merge.plan.notes)
    merge.save(tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert dict(plait.open(tmp_path / "out").config) == dict(was.config)
    assert torch.isfinite(forward(load(tmp_path / "out", name))).all()


def test_graft_by_module(pen: Path, other: Other) -> None:
    """`modules:` with the text stack alone gives the same as a graft of the whole model."""
    base = save("qwen2-vl", pen)
    tune = other(
        "qwen2-vl", "tune", lambda n: None if n.startswith("visual") else n, architectures=["Qwen2ForCausalLM"]
    )
    whole = plait.merge(make.recipe("task_arithmetic", tune, base=base))
    part = {"models": [{"model": str(tune), "parameters": {"weight": 1.0}}]}
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "modules": {"text_decoder": part}}
    assert [n for n, x in plait.merge(recipe) if not same(x, whole.read(n))] == []


def test_a_module_that_a_model_lacks(pen: Path, other: Other, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A model from which `modules:` wants a module that it does not have is refused; those that have it are named."""
    base = save("qwen2-vl", pen)
    text = other(
        "qwen2-vl", "text", lambda n: None if n.startswith("visual") else n, architectures=["Qwen2ForCausalLM"]
    )
    module = next(step.module for step in plait.merge(make.recipe("linear", base)).plan.steps if "visual" in step.name)
    part = {"models": [{"model": str(model), "parameters": {"weight": 1.0}} for model in (base, text)]}
    recipe = {"merge_method": "linear", "base_model": str(base), "modules": {module: part}}
    told = refused(f"has no {module}", "merge", make.write_json(tmp_path / "r.yml", recipe), tmp_path / "out")
    assert f"it is in {base}" in told


@pytest.mark.parametrize(
    ("name", "cls", "module"), [("llava", "CLIPVisionModel", "vision_tower"), ("t5", "T5EncoderModel", "encoder")]
)
def test_other_parts(name: str, cls: str, module: str, pen: Path, tmp_path: Path) -> None:
    """A vision tower or an encoder saved alone by transformers merges into its part of the whole, which loads and runs."""
    base = save(name, pen)
    config = transformers.AutoConfig.from_pretrained(base)
    getattr(transformers, cls)(getattr(config, "vision_config", config)).save_pretrained(tmp_path / "part")
    merge = plait.merge(make.recipe("task_arithmetic", tmp_path / "part", base=base))
    assert accounted(merge.plan)
    assert {step.module for step in merge.plan.steps if step.method} == {module}
    assert not [s.name for s in merge.plan.steps if s.module == module and not s.method]
    merge.save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", name))).all()


@pytest.mark.parametrize("turned", [False, True])
def test_split_experts_into_a_vision_model_s(turned: bool, tmp_path: Path) -> None:
    """Split text experts merge with the fused or turned ones of Qwen3-VL-MoE: as transformers holds them, in each tensor."""
    body = {
        "vocab_size": 80,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    body |= {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "patch_size": 8,
    }
    vision |= {"num_position_embeddings": 4, "deepstack_visual_indexes": [0]}
    untied = {"tie_word_embeddings": False}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**body, **untied, "rope_parameters": rope}, vision_config=vision, **untied
    )
    whole = transformers.Qwen3VLMoeForConditionalGeneration(config)
    text = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**body, **untied))
    whole.save_pretrained(tmp_path / "whole")
    text.save_pretrained(tmp_path / "text")
    if turned:
        file = tmp_path / "whole" / "model.safetensors"
        made = {n: x.transpose(1, 2).contiguous() if ".experts." in n else x for n, x in load_file(file).items()}
        save_file(made, file, {"format": "pt"})
    merge = plait.merge(make.recipe("linear", tmp_path / "whole", tmp_path / "text"))
    assert any(
        f"experts of {tmp_path / 'text'} are read as {'turned' if turned else 'fused'}" in n for n in merge.plan.notes
    )
    merge.save(tmp_path / "out")
    kind = transformers.Qwen3VLMoeForConditionalGeneration
    loaded, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    found, one, other = loaded.state_dict(), whole.state_dict(), text.state_dict()
    for name, x in other.items():
        inside = name.replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(found[inside], (one[inside] + x) / 2, rtol=0, atol=1e-7)


def test_two_vision_models_and_a_text_model(pen: Path, other: Other) -> None:
    """The vision tower of a merge with a text model is merged of those that have one."""
    base, a = save("qwen2-vl", pen), other("qwen2-vl", "a")
    b = other("qwen2-vl", "b", seed=2)
    text = other(
        "qwen2-vl", "text", lambda n: None if n.startswith("visual") else n, seed=3, architectures=["Qwen2ForCausalLM"]
    )
    merge = plait.merge(make.recipe("ties", a, b, text, base=base, parameters={"weight": 1.0, "density": 0.5}))
    pair = plait.merge(make.recipe("ties", a, b, base=base, parameters={"weight": 1.0, "density": 0.5}))
    counts = {n.startswith("visual"): len(merge.plan.step(n).inputs) for n in merge.specs}
    assert counts == {True: 2, False: 3}
    assert [n for n in merge.specs if n.startswith("visual") and not same(merge.read(n), pair.read(n))] == []


def test_a_vision_model_into_a_text_model(pen: Path, other: Other, tmp_path: Path) -> None:
    """With a text model as the base, the vision tower of the other is left out, with the reason, and the text runs."""
    config = json.loads((save("llama", pen) / "config.json").read_text()) | dict.fromkeys(
        ("text_config", "vision_config")
    )
    text = other(
        "idefics3",
        "text",
        lambda n: n.replace("text_model.", "") if "text" in n or n == "lm_head.weight" else None,
        **config,
    )
    merge = plait.merge(make.recipe("linear", save("idefics3", pen), base=text))
    assert accounted(merge.plan)
    reasons = {d.reason.replace(str(text), "T").split(",")[0] for d in merge.plan.dropped}
    assert reasons == {"T has no vision_tower", "T has no multi_modal_projector"}
    merge.save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", "llama"))).all()


def test_other_heads(pen: Path, other: Other, tmp_path: Path) -> None:
    """A bare encoder and a classifier merge with a masked-language model: heads are the base's, or left out with the reason."""
    base = save("bert", pen)
    bare = other("bert-bare", "bare", seed=1)
    classifier = other("bert-classifier", "classifier", seed=2)
    merge = plait.merge(make.recipe("linear", base, bare, classifier))
    assert accounted(merge.plan)
    assert len(merge.plan.step("bert.encoder.layer.0.attention.self.query.weight").inputs) == 3
    assert len(merge.plan.step("cls.predictions.transform.dense.weight").inputs) == 1
    dropped = {(d.model, name.rpartition(".")[0]) for d in merge.plan.dropped for name in d.names}
    assert dropped == {(1, "pooler.dense"), (2, "bert.pooler.dense"), (2, "classifier")}
    merge.save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", "bert"))).all()


def test_layers_for_prediction_are_optional(pen: Path, other: Other, tmp_path: Path) -> None:
    """A fine-tune without the base's multi-token prediction layers merges; they are the base's. And the other way round."""
    base = save("deepseek-v3", pen)
    short = other(
        "deepseek-v3",
        "short",
        lambda n: n if "layers.3." not in n else None,
        num_hidden_layers=3,
        num_nextn_predict_layers=0,
    )
    full = other("deepseek-v3", "full", num_hidden_layers=3, num_nextn_predict_layers=1)
    merge = plait.merge(make.recipe("task_arithmetic", short, base=full))
    extra = [n for n in merge.specs if "layers.3." in n]
    assert extra
    assert [n for n in extra if not same(merge.read(n), plait.open(full).read(n))] == []
    assert len(merge.plan.step("model.layers.2.input_layernorm.weight").inputs) == 1
    back = plait.merge(make.recipe("task_arithmetic", full, base=short))
    assert not [n for n in back.specs if "layers.3." in n]
    assert accounted(back.plan)
    assert {d.reason.split(",")[0].replace(str(short), "S") for d in back.plan.dropped} == {
        "S has no layer for multi-token prediction"
    }
    del base


@pytest.mark.parametrize(
    "name",
    [
        "vision_embed_tokens.weight",
        "model.high_res_vision_neck.conv1.weight",
        "query_tokens",
        "model.merger.a.weight",
        "model.vqmodel.a.weight",
    ],
)
def test_a_loose_tensor_for_pictures(name: str, tmp_path: Path) -> None:
    """What a model has for pictures outside of a tower is no hindrance to a merge with a text model, either way round."""
    made, picture = make.tensors(1), torch.full((3, 8), 2.0)
    seeing = make.write(tmp_path / "seeing", made | {name: picture}, settings=make.config(made, architectures=["Fuyu"]))
    text = make.model(tmp_path / "text", 2)
    merge = plait.merge(make.recipe("task_arithmetic", text, base=seeing))
    assert accounted(merge.plan)
    assert same(merge.read(name), picture)
    assert any(note.endswith("not merged with it: 1 tensor") for note in merge.plan.notes)
    back = plait.merge(make.recipe("task_arithmetic", seeing, base=text))
    assert accounted(back.plan)
    assert name not in back.specs
    make.write(tmp_path / "seeing", made | {name: picture}, settings=make.config(made))
    with pytest.raises(PlanError, match="lacks 1 tensor"):  # of one class, both should have it
        plait.merge(make.recipe("task_arithmetic", text, base=seeing))


@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_a_tensor_of_unclear_meaning_is_an_error(kind: str, tmp_path: Path) -> None:
    """A bias or norm in the layers of one model only is refused, with what to do; with --allow-crimes it is the base's."""
    made = make.tensors(1)
    more = {f"model.layers.{i}.self_attn.q_{kind}": torch.full((8,), float(i + 1)) for i in range(2)}
    plain, rich = make.write(tmp_path / "plain", made), make.write(tmp_path / "rich", make.tensors(2) | more)
    for base, model in ((plain, rich), (rich, plain)):
        recipe = make.recipe("task_arithmetic", model, base=base)
        with pytest.raises(PlanError, match="lacks 2 tensors") as caught:
            plait.merge(recipe)
        assert "--allow-crimes" in str(caught.value)
        merge = plait.merge(recipe, allow_crimes=True)
        assert accounted(merge.plan)
        assert set(merge.specs) == set(plait.open(base).specs)
        assert any(f"model.layers.N.self_attn.q_{kind} (2)" in note for note in merge.plan.notes)
    assert same(merge.read(f"model.layers.1.self_attn.q_{kind}"), more[f"model.layers.1.self_attn.q_{kind}"])


def test_crimes_list_every_mismatch(pen: Path, other: Other, tmp_path: Path) -> None:
    """Across architectures what fits is merged, the rest is the base's; every mismatch is told, both ways, with the shapes."""
    base, model = save("llama", pen), save("qwen3-moe", pen)
    recipe = make.recipe("task_arithmetic", model, base=base, parameters={"weight": 0.5})
    with pytest.raises(PlaitError, match="different architectures"):
        plait.merge(recipe)
    merge = plait.merge(recipe, allow_crimes=True)
    assert accounted(merge.plan)
    assert set(merge.specs) == set(plait.open(base).specs)
    ours, theirs = plait.open(base), plait.open(model)
    fits = {n for n, s in ours.specs.items() if n in theirs.specs and theirs.specs[n].shape == s.shape}
    assert {s.name for s in merge.plan.steps if s.method} == fits
    assert [n for n in merge.specs if n not in fits and not same(merge.read(n), ours.read(n))] == []
    told = "\n".join(merge.plan.notes)
    for wanted in (
        "model.layers.N.mlp.up_proj.weight (3)",
        "model.layers.N.mlp.experts.N.up_proj.weight (12)",
        "q_norm.weight (4)",
    ):
        assert wanted in told
    merge.save(tmp_path / "out")
    assert torch.isfinite(forward(load(tmp_path / "out", "llama"))).all()


def test_crimes_across_depths_and_sizes(tmp_path: Path) -> None:
    """A deeper or wider model lends what fits; its shapes are told."""
    small, deep = make.model(tmp_path / "small", 1), make.model(tmp_path / "deep", 2, layers=4)
    merge = plait.merge(make.recipe("task_arithmetic", deep, base=small), allow_crimes=True)
    assert accounted(merge.plan)
    assert {s.layer for s in merge.plan.steps} == {None, 0, 1}
    assert all(s.method for s in merge.plan.steps)
    back = plait.merge(make.recipe("task_arithmetic", small, base=deep), allow_crimes=True)
    assert {s.layer for s in back.plan.steps if not s.method} == {2, 3}
    assert accounted(back.plan)
    wide = make.model(tmp_path / "wide", 3, hidden=16)
    other = plait.merge(make.recipe("linear", small, wide), allow_crimes=True)
    assert accounted(other.plan)
    assert any("[16, 16] in" in note and "[8, 8] in" in note for note in other.plan.notes)


def test_the_base_decides_on_the_head(tmp_path: Path) -> None:
    """A tied base gives a tied output, without the other's head, and says so; an untied base gives an untied one."""
    tied, untied = make.model(tmp_path / "t", 1, tied=True), make.model(tmp_path / "u", 2)
    merge = plait.merge(make.recipe("task_arithmetic", untied, base=tied))
    assert "lm_head.weight" not in merge.specs
    assert merge.config["tie_word_embeddings"] is True
    assert any("lm_head.weight of" in note and "is left out" in note for note in merge.plan.notes)
    assert accounted(merge.plan)
    back = plait.merge(make.recipe("task_arithmetic", tied, base=untied))
    assert back.config["tie_word_embeddings"] is False
    embedding = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.allclose(back.read("lm_head.weight"), embedding, atol=1e-6)
    assert accounted(back.plan)


def test_layers_of_different_widths(tmp_path: Path) -> None:
    """Pruned models, whose layers differ in shape among themselves, merge, and stack, layer by layer."""
    paths = []
    for seed in (1, 2):
        made = make.tensors(seed, layers=3)
        for name in ("gate_proj", "up_proj"):
            key = f"model.layers.1.mlp.{name}.weight"
            made[key] = made[key][:6].clone()
        key = "model.layers.1.mlp.down_proj.weight"
        made[key] = made[key][:, :6].clone()
        paths.append(make.write(tmp_path / str(seed), made, settings=make.config(made, intermediate_size=[16, 6, 16])))
    merge = plait.merge(make.recipe("linear", *paths))
    assert [merge.specs[f"model.layers.{i}.mlp.up_proj.weight"].shape for i in range(3)] == [(16, 8), (6, 8), (16, 8)]
    ranges = [{"sources": [{"model": str(paths[0]), "layer_range": r}]} for r in ([0, 2], [1, 3])]
    stacked = plait.merge({"merge_method": "passthrough", "slices": ranges})
    assert stacked.config["intermediate_size"] == [16, 6, 6, 16]
    assert [stacked.specs[f"model.layers.{i}.mlp.up_proj.weight"].shape[0] for i in range(4)] == [16, 6, 6, 16]


def test_row_33_fill_missing_params(tmp_path: Path) -> None:
    """A part's tensors in a larger model, the rest of which stays: weight 1 for the part, 0 for the model, bit by bit."""
    part, own = make.model(tmp_path / "part", 1), make.tensors(1)
    whole = {f"language_model.{name}": x for name, x in make.tensors(0).items()}
    whole |= {"vision_tower.patch_embedding.weight": torch.ones(4, 4), "projector.weight": torch.ones(8, 4)}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": make.config(own)}
    (tmp_path / "whole").mkdir()
    save_file(whole, tmp_path / "whole" / "model.safetensors")
    make.write_json(tmp_path / "whole" / "config.json", config)
    models = [{"model": str(m), "parameters": {"weight": w}} for m, w in ((tmp_path / "whole", 0), (part, 1))]
    recipe = {"merge_method": "linear", "base_model": str(tmp_path / "whole"), "models": models}
    merge = plait.merge(recipe, allow_crimes=True)
    assert set(merge.specs) == set(whole)
    for name, x in whole.items():
        assert torch.equal(merge.read(name), own.get(name.removeprefix("language_model."), x))
