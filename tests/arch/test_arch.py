"""The inferred anatomy, against what transformers itself says of tiny models of many classes, and against names made by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from arch.zoo import VOCAB, ZOO, pen, save
from plait.arch import Architecture, infer
from plait.checkpoint.source import Opened, open_model
from plait.errors import PlanError
from plait.types import ModelRef, TensorSpec

__all__ = ["pen"]

#: modules and layers of the models that have several stacks
SEVERAL = {
    "bart": {"encoder": 2, "decoder": 3},
    "blip2": {"text_decoder": 4, "qformer": 3, "vision_tower": 2, "multi_modal_projector": 0},
    "clip": {"text_encoder": 4, "vision_tower": 2, "multi_modal_projector": 0},
    "gemma3-vl": {"text_decoder": 4, "vision_tower": 2, "multi_modal_projector": 0},
    "idefics3": {"text_decoder": 4, "vision_tower": 2, "multi_modal_projector": 0},
    "llava": {"text_decoder": 4, "vision_tower": 2, "multi_modal_projector": 0},
    "marian": {"encoder": 2, "decoder": 3},
    "qwen2-vl": {"text_decoder": 4, "vision_tower": 2},
    "qwen2.5-vl": {"text_decoder": 4, "vision_tower": 2},
    "qwen3-vl": {"text_decoder": 4, "vision_tower": 3},
    "switch": {"encoder": 4, "decoder": 4},
    "t5": {"encoder": 2, "decoder": 3},
    "whisper": {"encoder": 2, "decoder": 3},
}
THREE = (
    "dbrx",
    "distilbert",
    "distilbert-bare",
    "falcon",
    "bloom",
    "gptj",
    "mamba",
    "mamba2",
    "opt",
    "rwkv",
    "vit",
    "xglm",
    "xlnet",
)


def opened(name: str, pen: Path) -> Opened:
    return open_model(ModelRef(str(save(name, pen))))


def anatomy(name: str, pen: Path) -> Architecture:
    checkpoint = opened(name, pen).checkpoint
    return infer(checkpoint.specs, checkpoint.config)


def named(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, TensorSpec]:
    return {name: TensorSpec("F32", shape) for name in names}


def llama(layers: int, prefix: str = "model.layers.") -> dict[str, TensorSpec]:
    parts = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
    return named(*(f"{prefix}{i}.{part}" for i in range(layers) for part in parts))


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_has_one_place(name: str, pen: Path) -> None:
    """The modules of a model hold each of its tensors exactly once, and `place` says where."""
    arch = anatomy(name, pen)
    held = [tensor for module in arch.modules for tensor in module.names()]
    assert sorted(held) == sorted(arch.specs)
    for module in arch.modules:
        for tensor in module.names():
            place = arch.place(tensor)
            assert place.module == module.name
            if place.layer is None:
                assert place.suffix == tensor
                assert tensor in (module.before if place.position == "before" else module.after)
            else:
                assert module.stack
                assert place.position == "layer"
                assert place.suffix in module.stack.layers[place.layer]
                assert module.stack.name(place.layer, place.suffix) == tensor


@pytest.mark.parametrize("name", ZOO)
def test_stacks_are_those_of_the_config(name: str, pen: Path) -> None:
    """The stacks are the layers that the model was made with, and the key that counts them holds their number."""
    checkpoint = opened(name, pen).checkpoint
    arch = infer(checkpoint.specs, checkpoint.config)
    layers = {"albert": 1}.get(name, 3 if name in THREE else 4)
    assert {module.name: module.count for module in arch.modules} == SEVERAL.get(name, {"default": layers})
    for module in arch.modules:
        if module.stack and name != "nemotron-h":  # its config lists the layers and does not count them
            assert module.stack.layer_key
            count = checkpoint.config
            for key in module.stack.layer_key:
                count = count[key]
            assert count == module.count


@pytest.mark.parametrize("name", ZOO)
def test_ties_are_those_of_transformers(name: str, pen: Path) -> None:
    """A head is tied to an embedding when, and only when, they are one parameter of the model."""
    arch, model = anatomy(name, pen), ZOO[name]()
    head = model.get_output_embeddings()
    shared = head is not None and head.weight is model.get_input_embeddings().weight
    assert bool(arch.head and arch.tied.get(arch.head) == arch.embedding) == shared
    state = model.state_dict()
    for one, other in arch.tied.items():
        assert other in arch.specs
        if one in state and other in state:
            assert state[one].data_ptr() == state[other].data_ptr()
    if set(arch.specs) <= set(state):  # the files have the names of their modules
        loose = {state[n].data_ptr() for n in arch.specs if arch.place(n).layer is None}
        absent = {n for n in state if n not in arch.specs and state[n].data_ptr() in loose}
        assert absent == {n for n in arch.tied if n not in arch.specs}


@pytest.mark.parametrize("name", ZOO)
def test_vocabulary_axes(name: str, pen: Path) -> None:
    """Outside the layers the axis of the vocabulary's size, which no other size equals here, is found; inside there is none."""
    arch = anatomy(name, pen)
    for tensor, spec in arch.specs.items():
        place = arch.place(tensor)
        wanted = spec.shape.index(VOCAB) if place.layer is None and VOCAB in spec.shape else None
        assert arch.vocab_axis(tensor) == wanted, tensor


@pytest.mark.parametrize("name", ZOO)
def test_heads_and_embeddings_have_their_sides(name: str, pen: Path) -> None:
    """Token embeddings come before the layers, output heads and final norms after them."""
    arch = anatomy(name, pen)
    for module in arch.modules:
        assert not [n for n in module.after if arch.kind(n) == "embedding" and "adapter" not in n]
        if module.stack:
            assert not [n for n in module.before if arch.kind(n) == "head"]
    if arch.embedding:
        assert arch.place(arch.embedding).position == "before"
    if arch.head in arch.specs:
        assert arch.place(arch.head).position == "after"


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "mixtral", "bert", "t5", "deepseek-v3", "qwen3-moe", "gpt-neox", "bloom", "phi3"]
)
def test_transformer_layers_have_no_other_kinds(name: str, pen: Path) -> None:
    """In the layers of well-known families everything is attention, MLP, norm, expert or router."""
    arch = anatomy(name, pen)
    kinds = {arch.kind(tensor) for tensor in arch.specs if arch.place(tensor).layer is not None}
    assert kinds <= {"attention", "mlp", "norm", "expert", "router"}
    assert {"attention", "norm"} <= kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("transformer.h.3.attn.c_proj.weight", "attention"),
        ("transformer.h.3.mlp.c_proj.weight", "mlp"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("bert.encoder.layer.0.output.dense.weight", "mlp"),
        ("model.layers.1.mlp.experts.gate_up_proj", "expert"),
        ("model.layers.1.mlp.gate_proj.weight", "mlp"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "router"),
        ("model.layers.1.mlp.shared_expert_gate.weight", "router"),
        ("backbone.layers.0.mixer.A_log", "other"),
        ("transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight", "attention"),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "attention"),
        ("lm_head.weight", "head"),
        ("cls.predictions.transform.dense.weight", "head"),
        ("transformer.wpe.weight", "embedding"),
        ("model.visual.patch_embed.proj.weight", "embedding"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    """A tensor's kind is told from its name."""
    assert infer(named(name), {}).kind(name) == kind


def test_lists_of_other_things_are_loose() -> None:
    """Sparse numbers, plain Linear lists and convolution stacks are no layers, even when the config counts as many."""
    specs = llama(2) | named("classifier.0.weight", "classifier.0.bias", "classifier.1.weight", "classifier.1.bias")
    specs |= named(*(f"projector.mlp.{i}.weight" for i in (0, 2)))
    specs |= named(
        *(
            f"feature_extractor.conv_layers.{i}.{n}"
            for i in range(2)
            for n in ("conv.weight", "norm.weight", "norm.bias")
        )
    )
    arch = infer(specs, {"num_hidden_layers": 2})
    assert [(m.name, m.count) for m in arch.modules] == [("default", 2)]
    assert "classifier.1.weight" in arch.modules[0].after
    assert "feature_extractor.conv_layers.0.conv.weight" in arch.modules[0].before


def test_without_config() -> None:
    """Stacks are found with no config at all."""
    (module,) = infer(llama(3), {}).modules
    assert module.stack
    assert (module.stack.prefix, module.count, module.stack.layer_key) == ("model.layers.", 3, None)


def test_pruned_layers_keep_their_own_suffixes() -> None:
    """Layers may differ in their tensors, and one that pruning left without any is still a layer that the config counts."""
    specs = llama(4)
    specs = {name: spec for name, spec in specs.items() if ".2." not in name and ".1.mlp" not in name}
    (module,) = infer(specs, {"num_hidden_layers": 4}).modules
    assert module.stack
    assert [len(layer) for layer in module.stack.layers] == [4, 3, 0, 4]


def test_multi_token_prediction_layers() -> None:
    """Layers stored after those that the config counts belong to the stack, as extra ones."""
    arch = infer(
        llama(5) | named("model.layers.4.eh_proj.weight"), {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    )
    (module,) = arch.modules
    assert module.stack
    assert (module.count, module.stack.extra, module.stack.layer_key) == (5, 1, ("num_hidden_layers",))


def test_modules_by_name_and_prefix(pen: Path) -> None:
    """A module answers to its usual name, its stack's prefix and, for what no stack has, `default`; else the error guesses."""
    arch = anatomy("gemma3-vl", pen)
    assert arch.module("text_decoder") is arch.module("language_model.model.layers")
    assert arch.module("default") is arch.module("multi_modal_projector")
    with pytest.raises(PlanError, match="text_decoder") as caught:
        arch.module("text_decodr")
    assert caught.value.do == "write 'text_decoder'"


def test_text_count_left_to_the_class() -> None:
    """Where an old nested config does not count the layers, the key is the one that its class would read."""
    specs = llama(3, "language_model.model.layers.") | llama(2, "vision_tower.vision_model.encoder.layers.")
    arch = infer(specs, {"text_config": {"vocab_size": 9}, "vision_config": {"num_hidden_layers": 2}})
    keys = {module.name: module.stack.layer_key for module in arch.modules if module.stack}
    assert keys == {
        "text_decoder": ("text_config", "num_hidden_layers"),
        "vision_tower": ("vision_config", "num_hidden_layers"),
    }


def test_vocabulary_equal_to_hidden_size() -> None:
    """Where the vocabulary has the hidden size, only embeddings and heads span it, along the rows."""
    specs = named("model.embed_tokens.weight", "lm_head.weight", "model.proj.weight") | named(
        "model.norm.weight", shape=(4,)
    )
    arch = infer(specs, {"vocab_size": 4, "hidden_size": 4})
    assert {n: arch.vocab_axis(n) for n in specs} == {
        "model.embed_tokens.weight": 0,
        "lm_head.weight": 0,
        "model.proj.weight": None,
        "model.norm.weight": None,
    }


def test_padded_vocabulary() -> None:
    """Embedding and head rows beyond the config's vocabulary size still span it."""
    arch = infer(
        named("model.embed_tokens.weight", "lm_head.weight", shape=(12, 4)), {"vocab_size": 10, "hidden_size": 4}
    )
    assert (arch.vocab_axis("model.embed_tokens.weight"), arch.vocab_axis("lm_head.weight")) == (0, 0)


def test_tied_flag_inside_text_config() -> None:
    """A tie that only the nested config states is a tie, and a repeated head is tied too."""
    specs = llama(2) | named("model.embed_tokens.weight", "lm_head.weight", shape=(9, 4))
    config = {
        "architectures": ["XForConditionalGeneration"],
        "text_config": {"tie_word_embeddings": True, "vocab_size": 9},
    }
    assert infer(specs, config).tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_silent_config() -> None:
    """Without the flag a head in the file is its own, and an absent head of a generative class is tied."""
    specs = llama(2) | named("model.embed_tokens.weight", shape=(9, 4))
    config = {"architectures": ["XForCausalLM"], "vocab_size": 9}
    assert infer(specs, config).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert infer(specs | named("lm_head.weight", shape=(9, 4)), config).tied == {}
    assert infer(specs, config | {"architectures": ["XModel"]}).tied == {}


def test_buffers() -> None:
    """Causal masks, rotary frequencies and position ids are buffers; attention biases and batch statistics are not."""
    masks = {"h.0.attn.bias": TensorSpec("BOOL", (1, 1, 8, 8)), "h.0.attn.masked_bias": TensorSpec("F32", ())}
    masks |= named("layers.0.self_attn.rotary_emb.inv_freq", shape=(4,)) | named(
        "embeddings.position_ids", shape=(1, 8)
    )
    kept = named("layers.0.attn.bias", "bn.running_mean", "layers.0.self_attn.q_proj.bias", shape=(4,))
    kept |= {"bn.num_batches_tracked": TensorSpec("I64", ())}
    assert infer(masks | kept, {}).buffers == set(masks)


def test_a_hundred_thousand_names() -> None:
    """Inference is linear: 100,000 tensors take about a second of one core, at most three."""
    spec = TensorSpec("BF16", (8, 8))
    experts = [f"mlp.experts.{e}.{p}_proj.weight" for e in range(333) for p in ("gate", "up", "down")]
    specs = {f"model.layers.{i}.{suffix}": spec for i in range(100) for suffix in experts}
    start = time.process_time()
    arch = infer(specs, {"num_hidden_layers": 100})
    assert time.process_time() - start < 3
    assert arch.modules[0].count == 100


def test_same_model_same_anatomy(pen: Path) -> None:
    """The order of the tensors in the files does not change modules, ties or counts."""
    checkpoint = opened("t5", pen).checkpoint
    names = list(checkpoint.specs)
    mixed = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()]
    one, other = (infer({n: checkpoint.specs[n] for n in order}, checkpoint.config) for order in (names, mixed))
    assert one.tied == other.tied
    assert {(m.name, m.count, frozenset(m.names())) for m in one.modules} == {
        (m.name, m.count, frozenset(m.names())) for m in other.modules
    }
