"""What a config says of the positions (rotary embedding), whichever generation of transformers wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.errors import ModelError

#: kinds of scaling that GGUF has a place for, with the settings that it keeps
SETTINGS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "longrope": frozenset({"factor", "long_factor", "short_factor"}),
}
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


@dataclass(frozen=True)
class Rope:
    """The positions of a model: base frequency, kind of scaling and its settings, the part of a head that is turned."""

    theta: float
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    original: int = 0  # positions of the first training; 0 if it is not told
    part: float = 1.0
    local: float | None = None  # base frequency of the layers with a sliding window, if it is another


def rope(config: Mapping[str, Any], theta: float = 10000.0, local: float | None = None) -> Rope:
    """The positions of a model with this config; `theta`, `local`: what its class has by default.

    Raises `ModelError` for a kind of scaling, or a setting of it, that GGUF has no place for.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    sliding: Mapping[str, Any] = {}
    if "full_attention" in given:
        given, sliding = given["full_attention"], given.get("sliding_attention") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    strange = sorted(key for key in given if key not in SETTINGS.get(kind, ()) and key not in _ALWAYS)
    if kind not in SETTINGS or (strange := [key for key in strange if given[key] is not None]):
        raise ModelError(
            "GGUF has no place for the way in which this model scales its positions",
            wanted=", ".join(SETTINGS) if kind not in SETTINGS else ", ".join(sorted(SETTINGS[kind])),
            found=f"rope_type {kind}" + (f" with {', '.join(strange)}" if kind in SETTINGS else ""),
            do="export a model without it",
        )
    if sliding.get("rope_type", "default") != "default":
        raise ModelError(
            "layers with a sliding window scale their positions, which GGUF has no place for",
            wanted="rope_type default",
            found=str(sliding["rope_type"]),
            do="export a model without it",
        )
    original = given.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0
    return Rope(
        theta=float(given.get("rope_theta") or config.get("rope_theta") or theta),
        kind=kind,
        settings={key: given[key] for key in SETTINGS[kind] if given.get(key) is not None},
        original=int(original),
        part=float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0),
        local=sliding.get("rope_theta") or config.get("rope_local_base_freq") or local,
    )
