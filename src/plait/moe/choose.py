"""Which class a mixture is of, and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plait.errors import PlanError
from plait.moe.families import DENSE, FAMILIES, Family
from plait.moe.parts import Mlp
from plait.recipe import kinds
from plait.strands import Model


def kind_of(base: Model) -> str:
    """The base's model type."""
    return str(base.opened.config.get("model_type"))


def choose(asked: kinds.Mixture, base: Model) -> Family:
    """The first class that fits the base, the shared experts and `architecture`; `PlanError` with the reasons when none does."""
    kind, keys = kind_of(base), asked.keys
    if kind not in DENSE:
        raise PlanError(
            f"no mixture can be made of {base.ref}",
            wanted="a model of the type " + ", ".join(DENSE),
            found=kind,
            do="'plait moe --families' says which fit, and why others do not",
            where=asked.at("base_model"),
        )
    fitting = [family for family in FAMILIES if kind in family.dense]
    tried = [family for family in fitting if keys.architecture is None or family.answers(keys.architecture)]
    if not tried:
        raise PlanError(
            f"no class that fits a {kind} is called {keys.architecture!r}",
            wanted=", ".join(family.title for family in fitting),
            found=repr(keys.architecture),
            do="write the beginning of one of these, or leave 'architecture' out",
            where=asked.at("architecture"),
        )
    shared = keys.shared_experts or []
    windowed = kind == "mistral" and bool(base.opened.config.get("sliding_window", 4096))
    reasons = []
    for family in tried:
        gated = [bool(expert.positive_prompts) for expert in shared]
        if "random" in keys.gate_mode:  # which looks at no prompts
            gated = [bool(family.shared and family.shared.gate)] * len(shared)
        if (why := family.why_not(gated, windowed)) is None:
            return family
        reasons.append(f"{family.title}: {why}")
    raise PlanError(
        f"no class fits {base.ref} and what is asked of it",
        wanted="; ".join(reasons),
        found=f"{len(shared) or 'no'} shared expert{'s' * (len(shared) != 1)}",
        do="change 'shared_experts', 'architecture' or 'base_model' so that one of these fits",
        where=asked.at("shared_experts") or asked.at("architecture") or asked.at("base_model"),
    )


def homeless(family: Family, base: Model, mlp: Mlp, asked: kinds.Mixture) -> PlanError | None:
    """The tensors of the base's layers that the class has no place for, as an error."""
    kept = {*family.keeps, *mlp.suffixes}
    stack, buffers = mlp.stack, base.arch.buffers
    odd = dict.fromkeys(
        suffix
        for i, layer in enumerate(stack.layers)
        for suffix in layer
        if suffix not in kept and stack.name(i, suffix) not in buffers
    )
    if not odd:
        return None
    kind = kind_of(base)
    others = [f.title for f in FAMILIES if kind in f.dense and odd.keys() <= {*f.keeps, *mlp.suffixes}]
    return PlanError(
        f"{family.title} has no place for tensors of {base.ref}",
        wanted=", ".join(sorted(kept)),
        found=", ".join(odd),
        do=f"write 'architecture: {others[0]}', which has one" if others else "take another base",
        where=asked.at("architecture") or asked.at("base_model"),
    )


def facts(asked: kinds.Mixture, base: Model, mlp: Mlp, wide: int, shared: Sequence[Mlp]) -> dict[str, Any]:
    """What a family's config may name in braces. `wide`: of the routed experts."""
    config = base.opened.config
    return {
        "experts": len(asked.keys.experts),
        "top_k": asked.keys.experts_per_token,
        "wide": wide,
        "shared": len(shared),
        "shared_wide": shared[0].wide if shared else 0,
        "window": config.get("sliding_window", DENSE[kind_of(base)].defaults.get("sliding_window")),
        "biases": mlp.stack.name(0, "self_attn.q_proj.bias") in base.opened.checkpoint.specs,
        "attention": _head(asked, base, mlp.hidden) ** -0.5,
        "sparse": ["sparse"] * mlp.stack.count,
    }


def _head(asked: kinds.Mixture, base: Model, hidden: int) -> int:
    """How wide a head of the base's attention is."""
    config = base.opened.config
    size, heads = config.get("head_dim"), config.get("num_attention_heads")
    if size is None and isinstance(heads, int) and heads > 0:
        size = hidden // heads
    if not isinstance(size, int) or size < 1:
        raise PlanError(
            f"the config of {base.ref} does not say how wide its heads are",
            wanted="num_attention_heads or head_dim, a number from 1 on",
            found=f"num_attention_heads {heads!r:.40}, head_dim {config.get('head_dim')!r:.40}",
            do="mend its config.json",
            where=asked.at("base_model"),
        )
    return size


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """A value of a family's table, with the fact in place of a text in braces."""
    return known[value.strip("{}")] if isinstance(value, str) and value.startswith("{") else value


def config(family: Family, base: Model, known: Mapping[str, Any]) -> dict[str, Any]:
    """The base's config as the mixture's class reads it: what the base's class takes for absent keys is written down."""
    own, dense = dict(base.opened.config), DENSE[kind_of(base)]
    heads = own.get("num_attention_heads")
    defaults = {"num_key_value_heads": heads, "hidden_act": "silu", "tie_word_embeddings": False, **dense.defaults}
    if "rope_theta" not in own and "rope_parameters" not in own:
        defaults["rope_theta"] = dense.theta
    added = {**family.config, **family.only.get(kind_of(base), {})}
    kept = {key: value for key, value in own.items() if key not in ("auto_map", "_name_or_path")}
    out = {**defaults, **kept, **{key: filled(value, known) for key, value in added.items()}}
    if "intermediate_size" in out:
        out["intermediate_size"] = known["wide"]
    return {**out, "architectures": [family.architecture], "model_type": family.model_type}
