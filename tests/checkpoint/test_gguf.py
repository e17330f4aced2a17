"""A GGUF file gives the tensors and the config of the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import make
import plait
from plait.errors import ModelError
from plait.testing.checkpoints import check

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 20000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
WIDE = {"head_dim": 32}
EXPERTS = {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
#: name -> (llama.cpp's architecture, class in transformers, more of its config)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LLAMA", "Llama", {"attention_bias": True}),
    "mistral": ("LLAMA", "Llama", WIDE),
    "tied": ("LLAMA", "Llama", {"tie_word_embeddings": True}),
    "qwen2": ("QWEN2", "Qwen2", {}),
    "qwen3": ("QWEN3", "Qwen3", WIDE),
    "gemma": ("GEMMA", "Gemma", {**WIDE, "tie_word_embeddings": True}),
    "gemma2": ("GEMMA2", "Gemma2", {**WIDE, "tie_word_embeddings": True, "query_pre_attn_scalar": 32}),
    "gemma3": ("GEMMA3", "Gemma3", {**WIDE, "tie_word_embeddings": True, "query_pre_attn_scalar": 32}),
    "phi3": ("PHI3", "Phi3", {"pad_token_id": 0, "sliding_window": 99}),
    "qwen2moe": ("QWEN2MOE", "Qwen2Moe", SHARED),
    "qwen3moe": ("QWEN3MOE", "Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "mixtral": ("LLAMA", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def model(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """A small model of the family, written by transformers; its tensors."""
    _, kind, more = FAMILIES[name]
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(**(SIZES | more))
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for x in made.parameters():
            x += torch.randn(x.shape) * 0.1
    made.save_pretrained(folder)
    checkpoint = plait.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.specs}


def converted(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As llama.cpp converts them: its names, rows of q and k in its order, norms of Gemma raised, experts stacked."""
    kind, _, more = FAMILIES[name]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], SIZES["num_hidden_layers"])
    made: dict[str, Any] = {}
    for own, tensor in tensors.items():
        x = tensor.float().numpy()
        if kind == "LLAMA" and ("q_proj" in own or "k_proj" in own):
            heads = SIZES["num_attention_heads" if "q_proj" in own else "num_key_value_heads"]
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if kind.startswith("GEMMA") and own.endswith("norm.weight"):
            x = x + 1
        stacked = own
        for expert in range(more.get("num_experts", more.get("num_local_experts", 0))):
            stacked = stacked.replace(f".experts.{expert}.", ".experts.")
        target = known.get_name(stacked, try_suffixes=(".weight", ".bias"))
        assert target, own
        made.setdefault(target, []).append(x.squeeze(0) if "shared_expert_gate" in own else x)
    return {target: np.stack(found) if len(found) > 1 else found[0] for target, found in made.items()}


def write(path: Path, name: str, tensors: dict[str, np.ndarray], type: str | None = None, **more: Any) -> Path:
    """A GGUF file; matrices in the quantised `type`, norms in float32."""
    kind, _, own = FAMILIES[name]
    sizes = SIZES | own
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[kind]])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
    writer.add_rope_freq_base(sizes["rope_theta"])
    writer.add_vocab_size(sizes["vocab_size"])
    head = sizes.get("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    writer.add_rope_dimension_count(head)
    if "head_dim" in sizes and kind != "LLAMA":
        writer.add_key_length(head)
        writer.add_value_length(head)
    if experts := sizes.get("num_experts", sizes.get("num_local_experts")):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(sizes["num_experts_per_tok"])
    if "moe_intermediate_size" in sizes:
        writer.add_expert_feed_forward_length(sizes["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in sizes:
        writer.add_expert_shared_feed_forward_length(sizes["shared_expert_intermediate_size"])
    writer.add_bos_token_id(1)
    writer.add_token_list([f"w{i}" for i in range(sizes["vocab_size"])])
    for own_name, x in (tensors | more).items():
        x = np.ascontiguousarray(x, np.float32)
        if type and x.ndim > 1:
            quantised = gguf.GGMLQuantizationType[type]
            writer.add_tensor(own_name, gguf.quants.quantize(x, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(own_name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_original(name: str, tmp_path: Path) -> None:
    """The tensors of a float32 file are the original's, bit for bit (Gemma's norms to the last place), under its names."""
    tensors = model(name, tmp_path / "model")
    view = plait.open(write(tmp_path / "a.gguf", name, converted(name, tensors)))
    assert set(view.specs) == set(tensors)
    for own, x in tensors.items():
        read = view.read(own)
        assert torch.allclose(read, x, rtol=0, atol=2.4e-7) if "norm" in own else torch.equal(read, x), own
    assert check(view) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config(name: str, tmp_path: Path) -> None:
    """transformers makes the original model of the config: the same logits, once the GGUF file is merged into a folder."""
    tensors = model(name, tmp_path / "model")
    path = write(tmp_path / "a.gguf", name, converted(name, tensors))
    plait.merge(make.recipe("passthrough", path, parameters={})).save(tmp_path / "out")
    found = []
    for folder in (tmp_path / "model", tmp_path / "out"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert type(loaded).__name__.startswith(FAMILIES[name][1])
        with torch.no_grad():
            found.append(loaded(torch.arange(40)[None]).logits)
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "F16", "BF16"])
def test_as_transformers_reads_it(type: str, tmp_path: Path) -> None:
    """Quantised files give what transformers' own reader makes of them, bit for bit, in float32; the output is bfloat16."""
    path = write(tmp_path / "a.gguf", "mistral", converted("mistral", model("mistral", tmp_path / "model")), type)
    view = plait.open(path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    theirs = loaded.state_dict()
    assert set(view.specs) == set(theirs)
    assert [name for name, x in theirs.items() if not torch.equal(view.read(name).float(), x)] == []
    assert check(view) == []
    merge = plait.merge(make.recipe("linear", path))
    assert {spec.dtype for spec in merge.specs.values()} == {type if type == "F16" else "BF16"}
    assert merge.plan.read_nbytes < path.stat().st_size


def test_split_files(tmp_path: Path) -> None:
    """A model in several files is one model; a missing file is told."""
    tensors = converted("qwen3", model("qwen3", tmp_path / "model"))
    names = list(tensors)
    paths = [tmp_path / f"a-0000{i}-of-00002.gguf" for i in (1, 2)]
    for path, part in zip(paths, (names[:5], names[5:]), strict=True):
        write(path, "qwen3", {name: tensors[name] for name in part})
    whole = plait.open(write(tmp_path / "whole.gguf", "qwen3", tensors))
    split = plait.open(paths[0])
    assert set(split.specs) == set(whole.specs)
    assert all(torch.equal(split.read(name), whole.read(name)) for name in whole.specs)
    paths[1].unlink()
    with pytest.raises(ModelError, match="lacks files"):
        plait.open(paths[0])


def test_llama_3_positions(tmp_path: Path) -> None:
    """The divisors of Llama 3.1's frequencies become its rope_scaling; others are refused."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    sizes = SIZES | {"rope_theta": 500000.0, "head_dim": 64}
    config = transformers.LlamaConfig(**sizes, rope_parameters=scaling)
    turned, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    tensors = converted("llama", model("llama", tmp_path / "model"))
    original, FAMILIES["llama"] = FAMILIES["llama"], ("LLAMA", "Llama", {"rope_theta": 500000.0, "head_dim": 64})
    try:
        path = write(tmp_path / "a.gguf", "llama", tensors, **{"rope_freqs.weight": (plain / turned).numpy()})
        other = write(tmp_path / "b.gguf", "llama", tensors, **{"rope_freqs.weight": np.linspace(1, 9, 32)})
    finally:
        FAMILIES["llama"] = original
    scaling.pop("rope_theta")
    assert plait.open(path).config["rope_scaling"] == scaling
    with pytest.raises(ModelError, match="positions"):
        plait.open(other)


def typed(raw: bytes, name: bytes, number: int) -> bytes:
    """The file with another type of the matrix `name`: after the name are the count of axes, two sizes, and the type."""
    at = raw.index(name) + len(name) + 4 + 2 * 8
    return raw[:at] + number.to_bytes(4, "little") + raw[at + 4 :]


def valued(raw: bytes, key: bytes, value: int) -> bytes:
    """The file with another value of a key that is a number of 32 bits: it stands after the key and its type."""
    at = raw.index(key) + len(key) + 4
    return raw[:at] + value.to_bytes(4, "little") + raw[at + 4 :]


WRONG: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "cut in the metadata": ("not a GGUF file", lambda raw: raw[:300]),
    "cut in the weights": ("not a GGUF file", lambda raw: raw[:-5000]),
    "empty": ("not a GGUF file", lambda raw: b""),
    "another file": ("not a GGUF file", lambda raw: b"PK\3\4" + raw[4:]),
    "an old version": ("not a GGUF file", lambda raw: raw[:4] + b"\1" + raw[5:]),
    "2^60 tensors": ("not a GGUF file", lambda raw: raw[:8] + (2**60).to_bytes(8, "little") + raw[16:]),
    "2^60 keys": ("not a GGUF file", lambda raw: raw[:16] + (2**60).to_bytes(8, "little") + raw[24:]),
    "another architecture": ("does not know in GGUF", lambda raw: raw.replace(b"llama", b"mamba")),
    "whole numbers": ("attn_q.weight in I8, which", lambda raw: typed(raw, b"blk.0.attn_q.weight", 24)),
    "other heads": ("that does not fit", lambda raw: valued(raw, b"llama.attention.head_count", 3)),
    "another tensor": ("does not know in llama", lambda raw: raw.replace(b"blk.0.attn_q.", b"blk.0.attn_x.")),
}


@pytest.mark.parametrize("fault", WRONG)
def test_refused(fault: str, tmp_path: Path) -> None:
    """What is broken or not known is refused by name before the work."""
    path = write(tmp_path / "a.gguf", "llama", converted("llama", model("llama", tmp_path / "model")))
    word, spoil = WRONG[fault]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=word) as caught:
        plait.open(path)
    assert str(path) in caught.value.what
    assert caught.value.found
    assert caught.value.do


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    """What a GGUF file no longer has is told when it is read; the process lives."""
    path = write(tmp_path / "a.gguf", "llama", converted("llama", model("llama", tmp_path / "llama")))
    opened = plait.open(path)
    name = list(opened.specs)[-1]
    opened.read(name)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(ModelError, match=r"a\.gguf became shorter during the merge"):
        opened.read(name)
