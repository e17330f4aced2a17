"""The output's config.json: by hand, and proved by loading restacked checkpoints of many classes in transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arch.zoo import ZOO, forward, load, pen, save
from plait.arch import Architecture, infer
from plait.arch.config import Mended, mend
from plait.checkpoint.source import open_model
from plait.types import ModelRef, TensorSpec

__all__ = ["pen"]

#: models whose layer 0 cannot be there twice -> what the note speaks of
BOUND = {
    "blip2": "cross_attention_frequency",
    "gemma3n": "embed_tokens_per_layer",
    "jamba": "attn_layer_period",
    "modernbert": "layer 0",
    "qwen3-vl": "deepstack",
    "rwkv": "layer 0",
    "switch": "sparse_step",
    "t5": "layer 0",
    "zamba2": "shared blocks",
}


def stack(count: int, prefix: str = "model.layers.") -> dict[str, TensorSpec]:
    parts = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
    return {f"{prefix}{i}.{part}": TensorSpec("F32", (4, 4)) for i in range(count) for part in parts}


def mended(
    config: Mapping[str, Any], layers: Sequence[int], *others: tuple[Mapping[str, Any], int], count: int = 4
) -> Mended:
    """Mend a one-stack model's config for these layers of its own, then those of other configs."""
    specs = stack(count)
    return mend(config, infer(specs, config), {"default": [*((config, i) for i in layers), *others]}, specs)


def restack(source: Path, out: Path, choose: Callable[[int], Sequence[int]], drop: Sequence[str] = ()) -> Mended:
    """Write the checkpoint anew with other layers in every stack; `drop` leaves keys out of its config first."""
    checkpoint = open_model(ModelRef(str(source))).checkpoint
    config = {key: value for key, value in checkpoint.config.items() if key not in drop}
    arch = infer(checkpoint.specs, config)
    names: dict[str, str] = {}
    chosen = {}
    for module in arch.modules:
        names |= {name: name for name in (*module.before, *module.after)}
        if module.stack:
            layers = choose(module.count)
            chosen[module.name] = [(config, layer) for layer in layers]
            for i, layer in enumerate(layers):
                names |= {module.stack.name(i, s): module.stack.name(layer, s) for s in module.stack.layers[layer]}
    result = mend(config, arch, chosen, {new: checkpoint.specs[old] for new, old in names.items()})
    out.mkdir()
    save_file(
        {new: checkpoint.read(old).clone() for new, old in names.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "config.json").write_text(json.dumps(result.config))
    return result


@pytest.mark.parametrize("name", ZOO)
def test_same_layers_same_config(name: str, pen: Path) -> None:
    """Where nothing changes, the config is the base's, key by key, and there is nothing to note."""
    checkpoint = open_model(ModelRef(str(save(name, pen)))).checkpoint
    arch = infer(checkpoint.specs, checkpoint.config)
    chosen = {m.name: [(checkpoint.config, i) for i in range(m.count)] for m in arch.modules}
    assert mend(checkpoint.config, arch, chosen, checkpoint.specs) == Mended(dict(checkpoint.config))
    assert mend(checkpoint.config, arch, {}, checkpoint.specs) == Mended(dict(checkpoint.config))


@pytest.mark.parametrize("name", [name for name in ZOO if name not in BOUND])
def test_deeper_models_load_and_run(name: str, pen: Path, tmp_path: Path) -> None:
    """With every stack's first layer there twice, transformers finds each tensor it wants, no other, and computes."""
    assert restack(save(name, pen), tmp_path / "out", lambda n: [0, *range(n)]).notes == ()
    assert torch.isfinite(forward(load(tmp_path / "out", name))).all()


@pytest.mark.parametrize("name", BOUND)
def test_what_cannot_be_deeper_is_noted(name: str, pen: Path, tmp_path: Path) -> None:
    """A model that cannot have its first layer twice is not passed over: a note names the reason."""
    result = restack(save(name, pen), tmp_path / "out", lambda n: [0, *range(n)])
    assert any(BOUND[name] in note for note in result.notes)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3", "gpt-oss", "cohere2", "olmo3", "exaone4"])
def test_older_files_without_layer_types(name: str, pen: Path, tmp_path: Path) -> None:
    """Layer types that transformers would derive from the layer's number stay those of the source's layers."""
    layers = [0, 1, 1, 2, 3]
    old = ZOO[name]().config.layer_types
    restack(save(name, pen), tmp_path / "out", lambda n: layers, drop=["layer_types"])
    model = load(tmp_path / "out", name)
    assert torch.isfinite(forward(model)).all()
    assert model.config.layer_types == [old[i] for i in layers]


def test_multi_token_prediction() -> None:
    """Layers beyond the count stay beyond it; without them `num_nextn_predict_layers` is 0."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "first_k_dense_replace": 1}
    kept = mended(config, [0, 1, 2, 1, 2, 3, 4], count=5).config
    assert (kept["num_hidden_layers"], kept["num_nextn_predict_layers"]) == (6, 1)
    cut = mended(config, [0, 1, 2], count=5).config
    assert (cut["num_hidden_layers"], cut["num_nextn_predict_layers"]) == (3, 0)
    assert any("between" in note for note in mended(config, [0, 4, 1], count=5).notes)


def test_elements_come_from_each_layers_own_source() -> None:
    """Per-layer lists take each output layer's element from the config of the layer's source, scalars included."""
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "intermediate_size": [1, 2, 3, 4]}
    other = {"num_hidden_layers": 4, "layer_types": ["c", "d", "e", "f"], "intermediate_size": 9}
    out = mended(config, [3, 0], (other, 2), (other, 2)).config
    assert (out["layer_types"], out["intermediate_size"]) == (["b", "a", "e", "e"], [4, 1, 9, 9])


def test_lists_that_are_not_per_layer_stay() -> None:
    """Token ids, rope sections and the like are left alone even when they are as long as the model is deep."""
    lists = {
        "eos_token_id": [1, 2, 3, 0],
        "architectures": ["A", "B", "C", "D"],
        "rope_scaling": {"mrope_section": [1, 2, 3, 4], "short_factor": [1.0, 1.0, 2.0, 2.0]},
        "conv_dim": [8, 8, 8, 8],
        "pad_ids": [0, 1, 2, 3],
    }
    out = mended({"num_hidden_layers": 4, **lists}, [0, 1]).config
    assert {key: out[key] for key in lists} == lists


@pytest.mark.parametrize(
    ("before", "layers", "after"),
    [
        ({"mlp_only_layers": [0, 3], "decoder_sparse_step": 1}, [0, 0, 1, 3], {"mlp_only_layers": [0, 1, 3]}),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, [0, 1, 2, 3], {"mlp_only_layers": [], "decoder_sparse_step": 2}),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, [0, 0, 1], {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}),
        ({"cross_attention_layers": [1, 3]}, [0, 1, 2, 1, 2, 3], {"cross_attention_layers": [1, 3, 5]}),
        ({"full_attn_idxs": [2]}, [2, 0, 2], {"full_attn_idxs": [0, 2]}),
        ({"moe_layers_enum": "1,2,3"}, [0, 1, 1], {"moe_layers_enum": "1,2"}),
        ({"no_rope_layers": [1, 1, 1, 0]}, [3, 0, 1], {"no_rope_layers": [0, 1, 1]}),
        ({"no_rope_layer_interval": 2}, [0, 0, 1], {"no_rope_layer_interval": 2, "no_rope_layers": [1, 1, 0]}),
        ({"first_k_dense_replace": 1}, [0, 0, 1, 2], {"first_k_dense_replace": 2}),
        ({"num_kv_shared_layers": 2}, [0, 1, 3], {"num_kv_shared_layers": 1}),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 2, 1], {"attn_layer_period": 3, "attn_layer_offset": 2}),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 2], {"attn_layer_period": 3, "attn_layer_offset": 2}),
        ({"hybrid_override_pattern": "M-M*"}, [0, 1, 3, 3], {"hybrid_override_pattern": "M-**"}),
        ({"block_types": ["recurrent", "attention"]}, [0, 0, 1], {"block_types": ["recurrent", "recurrent", "attention"]}),
        ({"model_type": "gemma2"}, [0, 1, 2, 3, 2, 3], {"model_type": "gemma2"}),
        (
            {"model_type": "qwen3_next", "full_attention_interval": 2},
            [1, 0],
            {"layer_types": ["full_attention", "linear_attention"]},
        ),
        ({"model_type": "gemma2"}, [0, 0, 1], {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": 2},
            [1, 2],
            {"sliding_window_pattern": 2, "layer_types": ["full_attention", "sliding_attention"]},
        ),
        (
            {"max_window_layers": 2, "use_sliding_window": True, "sliding_window": 8},
            [2, 0],
            {"layer_types": ["sliding_attention", "full_attention"]},
        ),
        ({"max_window_layers": 2, "use_sliding_window": True, "sliding_window": 8}, [0, 2], {"max_window_layers": 1}),
        ({"max_window_layers": 28, "use_sliding_window": False}, [2, 0], {"max_window_layers": 28}),
    ],
)  # fmt: skip
def test_rules(before: dict[str, Any], layers: list[int], after: dict[str, Any]) -> None:
    """What a config says about layers by numbers, counts and periods is said of the output's layers, without a note."""
    out = mended({"num_hidden_layers": 4, **before}, layers)
    assert {key: value for key, value in out.config.items() if key in after} == after
    assert out.config["num_hidden_layers"] == len(layers)
    assert ("layer_types" in out.config) == ("layer_types" in after)
    assert out.notes == ()


@pytest.mark.parametrize(
    ("before", "layers", "word"),
    [
        ({"first_k_dense_replace": 1}, [1, 0, 2], "first_k_dense_replace"),
        ({"num_kv_shared_layers": 2}, [3, 0], "num_kv_shared_layers"),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [0, 1, 1], "attn_layer_period"),
        ({"some_layer_interval": 3}, [0, 2], "some_layer_interval"),
    ],
)
def test_what_the_config_cannot_say_is_noted(before: dict[str, Any], layers: list[int], word: str) -> None:
    """Where the config's own terms cannot say what the layers are, a note names the key."""
    assert any(word in note for note in mended({"num_hidden_layers": 4, **before}, layers).notes)


def test_nested_count_and_absent_module() -> None:
    """The count is mended where it is, and a module that is not given is untouched."""
    specs = stack(4, "language_model.model.layers.") | stack(2, "vision_tower.encoder.layers.")
    config = {
        "text_config": {"num_hidden_layers": 4, "layer_types": list("abab")},
        "vision_config": {"num_hidden_layers": 2},
    }
    out = mend(config, infer(specs, config), {"text_decoder": [(config, i) for i in (0, 1, 1)]}, specs).config
    assert out["text_config"] == {"num_hidden_layers": 3, "layer_types": ["a", "b", "b"]}
    assert out["vision_config"] == {"num_hidden_layers": 2}


def test_encoder_and_decoder_apart() -> None:
    """Encoder and decoder counts change apart, and the common name follows the encoder's."""
    specs = stack(2, "model.encoder.layers.") | stack(2, "model.decoder.layers.")
    config = {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}
    arch = infer(specs, config)
    decoder = mend(config, arch, {"decoder": [(config, 0)]}, specs).config
    assert (decoder["encoder_layers"], decoder["decoder_layers"], decoder["num_hidden_layers"]) == (2, 1, 2)
    encoder = mend(config, arch, {"encoder": [(config, 0)]}, specs).config
    assert (encoder["encoder_layers"], encoder["decoder_layers"], encoder["num_hidden_layers"]) == (1, 2, 1)


def embedded(rows: int, *, head: bool, dtype: str = "BF16") -> dict[str, TensorSpec]:
    names = ["model.embed_tokens.weight", *(["lm_head.weight"] if head else [])]
    return {name: TensorSpec(dtype, (rows, 4)) for name in names}


def anatomy(config: Mapping[str, Any], *, head: bool) -> Architecture:
    return infer(embedded(9, head=head), config)


@pytest.mark.parametrize("nested", [False, True])
def test_vocabulary_size(nested: bool) -> None:
    """`vocab_size`, nested or not, is the number of rows of the output's embedding."""
    inner = {"vocab_size": 9}
    config: dict[str, Any] = {"text_config": inner} if nested else inner
    out = mend(config, anatomy(config, head=True), {}, embedded(12, head=True)).config
    assert (out["text_config"] if nested else out)["vocab_size"] == 12


def test_tie_follows_the_tensors() -> None:
    """A head that the base did not have unties, one that is gone ties, `tied` decides when given; the key changes where it is."""
    untied: dict[str, Any] = {"architectures": ["XForCausalLM"], "tie_word_embeddings": False, "vocab_size": 9}
    tied = untied | {"tie_word_embeddings": True}
    nested = {"architectures": ["XForCausalLM"], "text_config": {"tie_word_embeddings": True, "vocab_size": 9}}
    key = "tie_word_embeddings"
    assert mend(tied, anatomy(tied, head=False), {}, embedded(9, head=True)).config[key] is False
    assert mend(untied, anatomy(untied, head=True), {}, embedded(9, head=False)).config[key] is True
    assert mend(tied, anatomy(tied, head=True), {}, embedded(9, head=True)).config[key] is True
    assert mend(tied, anatomy(tied, head=True), {}, embedded(9, head=True), tied=False).config[key] is False
    out = mend(nested, anatomy(nested, head=False), {}, embedded(9, head=True)).config
    assert out["text_config"][key] is False
    assert key not in out


def test_dtype_in_both_spellings() -> None:
    """`dtype` and `torch_dtype`, top and nested, follow the tensors; a part with a dtype of its own keeps it."""
    config: dict[str, Any] = {"dtype": "float16", "torch_dtype": "float16", "vocab_size": 9}
    config |= {"text_config": {"torch_dtype": "float16"}, "vision_config": {"dtype": "float32"}}
    out = mend(config, anatomy(config, head=True), {}, embedded(9, head=True)).config
    assert (out["dtype"], out["torch_dtype"], out["text_config"]["torch_dtype"]) == ("bfloat16",) * 3
    assert out["vision_config"]["dtype"] == "float32"


def test_quantization_is_dropped_when_asked() -> None:
    """`quantization_config` is left out, with a note, only when the caller says that the weights are dequantised."""
    config = {"quantization_config": {"quant_method": "fp8"}, "vocab_size": 9, "dtype": "bfloat16"}
    arch = anatomy(config, head=True)
    kept = mend(config, arch, {}, embedded(9, head=True))
    assert kept == Mended(config)
    dropped = mend(config, arch, {}, embedded(9, head=True), drop_quantization=True)
    assert "quantization_config" not in dropped.config
    assert len(dropped.notes) == 1


def test_the_given_config_is_not_changed() -> None:
    """Mending is pure: the configs that are given stay as they were."""
    config = {
        "num_hidden_layers": 4,
        "layer_types": list("abab"),
        "text_config": {"dtype": "float16"},
        "mlp_only_layers": [1],
    }
    before = copy.deepcopy(config)
    out = mended(config, [0, 1]).config
    assert config == before
    out["layer_types"].append("x")
    out["text_config"]["dtype"] = "x"
    assert config == before
