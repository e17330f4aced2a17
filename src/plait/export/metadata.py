"""config.json as the metadata of a GGUF file: the inverse of `checkpoint.gguf.config`, whose table it shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plait.checkpoint.gguf.config import KEYS, LARGE, llama3_divisors
from plait.checkpoint.gguf.names import FAMILIES, Family
from plait.errors import ModelError
from plait.export.rope import Rope, rope

#: model_type of transformers -> entry of FAMILIES
KINDS = {family.model_type: name for name, family in FAMILIES.items()} | {"mistral": "llama", "gemma3": "gemma3"}
#: what a class has where its config says nothing
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 256, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    "mistral": {"num_key_value_heads": 8},
}
_THETA = {"gemma3_text": (1e6, 1e4)}  # base frequency; of layers with a sliding window
_WANTED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
#: every so many layers one attends to everything, where the file does not say which do
_PATTERN = {"gemma2": 2, "gemma3_text": 6}


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model, with what its class has by default."""
    found = dict(config.get("text_config") or config)
    kind = str(found.get("model_type") or config.get("model_type"))
    kind = "gemma3_text" if kind == "gemma3" else kind
    found = {**_DEFAULTS.get(kind, {}), **{k: v for k, v in found.items() if v is not None}, "model_type": kind}
    found.setdefault("rms_norm_eps", 1e-6)
    if "num_attention_heads" in found:
        found.setdefault("num_key_value_heads", found["num_attention_heads"])
    return found


def family_of(config: Mapping[str, Any]) -> tuple[str, Family]:
    """llama.cpp's architecture for a model with this config, and its family; raises `ModelError` if there is none."""
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(
            "plait does not export models of this architecture to GGUF",
            wanted="a model_type of " + ", ".join(KINDS),
            found=str(kind),
            do="write the merge with plait merge, and convert it with llama.cpp's convert_hf_to_gguf.py",
        )
    called = KINDS[str(kind)]
    return "llama" if called == "mixtral" else called, FAMILIES[called]


def metadata(family: Family, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]], list[str]]:
    """Keys (after the architecture's name) and values, the tensors that hold settings, and notes.

    Raises `ModelError` for what llama.cpp would compute otherwise than the model does.
    """
    if missing := [key for key in _WANTED if not isinstance(config.get(key), int)]:
        raise ModelError("the config lacks what GGUF needs", wanted=", ".join(missing), found="nothing", do="mend it")
    kind, heads = str(config["model_type"]), config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    _computed_as_here(family, {**config, "head_dim": head})
    positions = rope(config, *_THETA.get(kind, ()))
    made = {key: config[name] for key, name in KEYS.items() if config.get(name) is not None}
    made |= {"attention.key_length": head, "attention.value_length": head}
    made |= {"rope.dimension_count": int(positions.part * head), "rope.freq_base": positions.theta}
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        made["expert_count"] = experts
    scaling, settings = _scaling(positions, made["rope.dimension_count"], config)
    made |= scaling
    notes = []
    if kind in _PATTERN:
        made |= _windows(config, _PATTERN[kind])
        if kind == "gemma3_text":
            made["rope.freq_base_swa"] = float(positions.local or positions.theta)
    elif (window := _ignored_window(config)) is not None:
        notes.append(f"the model attends to the last {window} tokens, in llama.cpp to all: the same up to {window}")
    if kind != "phi3" and kind not in _PATTERN:
        made.pop("attention.sliding_window", None)
    return dict(_typed(made)), settings, notes


def _ignored_window(config: Mapping[str, Any]) -> int | None:
    """A sliding window that llama.cpp does not keep for this architecture, and that matters."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return window if window and window < config["max_position_embeddings"] else None


def _typed(made: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers as llama.cpp wants them: what is a fraction stays one, though JSON wrote 10000."""
    for key, value in made.items():
        real = key.endswith(
            ("epsilon", "softcapping", "freq_base", "freq_base_swa", "factor", "beta_fast", "beta_slow")
        )
        yield key, float(value) if real else value


def _scaling(found: Rope, size: int, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    original, settings = found.original or config["max_position_embeddings"], found.settings
    if found.kind == "default":
        return {}, {}
    if found.kind == "llama3":
        return {}, {"rope_freqs.weight": llama3_divisors(found.theta, size, original, **settings)}
    if found.kind == "longrope":
        return _longrope(found, size, original, config)
    made = {"rope.scaling.type": found.kind, "rope.scaling.factor": settings["factor"]}
    if found.kind == "yarn":
        made["rope.scaling.original_context_length"] = original
        made |= {f"rope.scaling.yarn_{key}": settings[key] for key in ("beta_fast", "beta_slow") if key in settings}
    return made, {}


def _longrope(
    found: Rope, size: int, original: int, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """LongRoPE of Phi-3; the scale of the attention follows https://arxiv.org/abs/2402.13753 as in transformers."""
    import math

    settings = {f"rope_factors_{kind}.weight": [float(x) for x in found.settings[f"{kind}_factor"]] for kind in _BOTH}
    if odd := [name for name, values in settings.items() if len(values) != size // 2]:
        raise ModelError(
            "the factors of the positions do not fit the heads",
            wanted=str(size // 2),
            found=str(len(settings[odd[0]])),
            do="take short_factor and long_factor from the config.json of the model that it was made from",
        )
    factor = config["max_position_embeddings"] / original
    made: dict[str, Any] = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": original}
    made["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return made, settings


_BOTH = ("long", "short")


def _windows(config: Mapping[str, Any], every: int) -> dict[str, Any]:
    """Which layers have a sliding window; said only where it is not each but every so manieth layer."""
    count = config["num_hidden_layers"]
    every_here = config.get("sliding_window_pattern") or every
    kinds = config.get("layer_types")
    sliding = (
        [kind == "sliding_attention" for kind in kinds] if kinds else [(i + 1) % every_here != 0 for i in range(count)]
    )
    usual = [(i + 1) % every != 0 for i in range(count)]
    return {} if sliding == usual else {"attention.sliding_window_pattern": sliding}


def _computed_as_here(family: Family, config: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp has fixed for the architecture and this model has otherwise."""
    kind = family.model_type
    gemma = kind.startswith("gemma")
    given = str(config.get("hidden_activation") or config.get("hidden_act") or ("gelu" if gemma else "silu"))
    wrong = (
        []
        if given.startswith("gelu" if gemma else ("silu", "swish"))
        else [("activation", "gelu" if gemma else "silu", given)]
    )
    size, heads, head = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    if kind in LARGE:
        scale = size // heads if config["num_hidden_layers"] == LARGE[kind] else head
        if (found := config["query_pre_attn_scalar"]) != scale:
            wrong.append(("query_pre_attn_scalar", f"{scale} for {config['num_hidden_layers']} layers", str(found)))
    if kind in ("qwen2", "phi3") and head * heads != size:
        wrong.append(("head_dim", str(size // heads), str(head)))
    for key, moe in (("qwen2_moe", False), ("qwen3_moe", True)):
        if kind == key and bool(config.get("norm_topk_prob")) != moe:
            wrong.append(("norm_topk_prob", str(moe).lower(), str(not moe).lower()))
    if config.get("use_bidirectional_attention"):
        wrong.append(("use_bidirectional_attention", "false", "true"))
    if wrong:
        what, wanted, found = wrong[0]
        raise ModelError(
            f"llama.cpp would compute this model otherwise: {what} is fixed there",
            wanted=wanted,
            found=found,
            do="run it with transformers, or export another model",
        )
