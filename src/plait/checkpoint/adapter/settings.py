"""adapter_config.json, checked: what of it decides the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import ModelError
from plait.types import compiled

#: ways to start that change the base's weights: the adapter is a difference to weights that are not the base's any more
_MOVED = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
#: options that make the layer another function than W + scale * B A
_OTHER = (
    *("use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("velora_config", "monteclora_config", "megatron_config"),
)
_MERGE_IT = "merge it into its base with peft (merge_and_unload), and name the result"
_PATTERN = re.compile(r"[\w.\\|()?:*+^$\[\]{},-]{1,400}")


@dataclass(frozen=True)
class Settings:
    """The part of a LoRA's configuration that decides the weights."""

    path: Path
    rank: int
    alpha: float
    ranks: Mapping[str, float]  # regular expression for the end of a module's name -> rank
    alphas: Mapping[str, float]
    rslora: bool  # scale is alpha / sqrt(rank), not alpha / rank
    dora: bool
    transposed: bool  # fan_in_fan_out: weights are stored as [in, out]
    parameters: tuple[str, ...]  # target_parameters, by their last name
    tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]]  # trainable_token_indices
    tying: bool  # ensure_weight_tying

    def rank_of(self, module: str) -> int:
        return int(_matched(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return _matched(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """The ids of the rows that the adapter trained in an embedding."""
        if not isinstance(self.tokens, Mapping):
            return self.tokens
        return next((ids for end, ids in self.tokens.items() if f".{module}".endswith(f".{end}")), ())


def _matched(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that fits the end of the name, as PEFT matches them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def settings(path: Path, config: Mapping[str, Any]) -> Settings:
    """The settings in the JSON object `config` of `path`; `ModelError` for what is wrong or cannot be merged."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{path.parent} is not a LoRA", wanted='"peft_type": "LORA"', found=str(kind)[:40], do=_MERGE_IT
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED):
        raise ModelError(
            f"the adapter {path.parent} does not belong to its base's own weights: training began by changing them",
            wanted="an adapter that is a difference to the base",
            found=f'"init_lora_weights": "{start[:40]}"',
            do="save it with peft's path_initial_model_for_weight_conversion, which makes it such a difference",
        )
    if other := [key for key in _OTHER if config.get(key)]:
        raise ModelError(
            f"the adapter {path.parent} uses {other[0]}, which plait does not know",
            wanted="LoRA, rsLoRA or DoRA",
            found=", ".join(other),
            do=_MERGE_IT,
        )
    read = _Reader(path, config)
    return Settings(
        path,
        rank=int(read.number("r", 8)),
        alpha=read.number("lora_alpha", 8),
        ranks=read.patterns("rank_pattern"),
        alphas=read.patterns("alpha_pattern"),
        rslora=read.flag("use_rslora"),
        dora=read.flag("use_dora"),
        transposed=read.flag("fan_in_fan_out"),
        parameters=tuple(dict.fromkeys(name.rpartition(".")[2] for name in read.names("target_parameters"))),
        tokens=read.tokens("trainable_token_indices"),
        tying=read.flag("ensure_weight_tying"),
    )


@dataclass(frozen=True)
class _Reader:
    path: Path
    config: Mapping[str, Any]

    def number(self, key: str, default: float) -> float:
        return self._positive(key, self.config.get(key, default))

    def _positive(self, key: str, value: Any) -> float:
        whole = key in ("r", "rank_pattern")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self._wrong(key, "a number above 0", value)
        if whole and value != int(value):
            raise self._wrong(key, "a whole number", value)
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.config.get(key) or False
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def names(self, key: str) -> list[str]:
        value = self.config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, "a list of names", value)
        return value

    def patterns(self, key: str) -> dict[str, float]:
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, "an object: pattern -> number", value)
        for pattern in value:
            if not _PATTERN.fullmatch(pattern):
                raise self._wrong(key, "names, or simple patterns of names", pattern)
            try:
                compiled(pattern)
            except re.error as error:
                raise self._wrong(key, "names, or regular expressions that are simple patterns", pattern) from error
        return {pattern: self._positive(key, number) for pattern, number in value.items()}

    def tokens(self, key: str) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        value = self.config.get(key) or []
        if isinstance(value, dict):
            return {name: self._ids(key, ids) for name, ids in value.items()}
        return self._ids(key, value)

    def _ids(self, key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
            raise self._wrong(key, "a list of token ids", value)
        return tuple(value)

    def _wrong(self, key: str, wanted: str, found: Any) -> ModelError:
        return ModelError(
            f"{self.path}: {key} cannot be that",
            wanted=wanted,
            found=ascii(found)[:80],
            do="download or copy the file again",
        )
