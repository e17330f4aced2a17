"""Quantised checkpoints as weights: dequantised row by row, as they are read. One file a format; the folder is the list.

A format's file has `METHODS`, the names that `quantization_config.quant_method` has for it, and
`weights(quantization, checkpoint)`, which says, from config and headers, how each weight is made of what is stored.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from plait.checkpoint import Checkpoint, Rows
from plait.errors import ModelError
from plait.lazy import Tensor, torch
from plait.types import CODES, MERGEABLE, TensorSpec

T = TypeVar("T")
BLOCK = 1 << 18  # entries that are dequantised at once
#: of attention's cache, whatever the format: they have no part in the weights
_CACHE = tuple(f"{of}_{what}" for of in ("k", "v", "q", "kv") for what in ("scale", "zero_point"))
INSTEAD = "use the model that it was quantised from"


class Storage:
    """The stored tensors, for the formats. `hold` keeps what a thread made for a weight until it reads another one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.specs, self.read = checkpoint.specs, checkpoint.read
        self._local = threading.local()

    def hold(self, key: object, make: Callable[[], T]) -> T:
        if getattr(self._local, "key", None) != key:
            self._local.key, self._local.value = key, make()
        return self._local.value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Weight:
    """A weight that is not stored as it is: its shape, the tensors that it is made of, and how its rows are made.

    `rows(storage, start, stop)` gives rows of the matrix view in float32, `[stop - start, columns]`. `held`: bytes that a
    thread holds while it reads the weight, besides those rows.
    """

    shape: tuple[int, ...]
    stored: tuple[str, ...]
    rows: Callable[[Storage, int, int], Tensor]
    held: int = 0


@cache
def formats() -> dict[str, Callable[[Mapping[str, Any], Checkpoint], dict[str, Weight]]]:
    """quant_method -> the function that finds the weights."""
    found: dict[str, Callable[[Mapping[str, Any], Checkpoint], dict[str, Weight]]] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            format = importlib.import_module(f"{__name__}.{module.name}")
            found |= dict.fromkeys(format.METHODS, format.weights)
    return found


class Dequantised:
    """A `Checkpoint` of the weights in a quantised one; `quantization_config` is gone from its config.

    Dequantised weights are float32, the product of code and scale with one rounding. `home` has the dtype that the config
    states for the model, bfloat16 if it states none. What served the quantisation alone (scales, indices) is not in `specs`.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, Weight], kind: str) -> None:
        self.notes = (f"{len(weights)} weights are quantised ({kind}), and dequantised as they are read",)
        self.config: Mapping[str, Any] = _plain(checkpoint.config)
        self._storage, self._weights = Storage(checkpoint), weights
        gone = {name for weight in weights.values() for name in weight.stored}
        gone |= {name for name, spec in checkpoint.specs.items() if name.endswith(_CACHE) and spec.numel <= 4096}
        owners = {weight.stored[0]: name for name, weight in weights.items()}  # a weight stands where its codes stood
        specs: dict[str, TensorSpec] = {}
        for name, spec in checkpoint.specs.items():
            if name in owners:
                specs[owners[name]] = TensorSpec("F32", weights[owners[name]].shape)
            elif name not in gone:
                specs[name] = spec
        self.specs: Mapping[str, TensorSpec] = specs
        self.home: Mapping[str, str] = dict.fromkeys(weights, _stated(checkpoint.config))
        self.held = {name: weight.held + 4 * 4 * BLOCK for name, weight in weights.items()}
        self.stored = {
            name: sum(checkpoint.specs[part].nbytes for part in weight.stored) for name, weight in weights.items()
        }

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        weight = self._weights.get(name)
        if weight is None:
            return self._storage.read(name, rows)
        count, columns = self.specs[name].matrix
        start, stop = rows or (0, count)
        made = torch.empty(stop - start, columns)
        step = max(1, BLOCK // max(1, columns))
        for row in range(start, stop, step):
            last = min(row + step, stop)
            made[row - start : last - start] = weight.rows(self._storage, row, last)
        return made if rows else made.reshape(weight.shape)


def quantisation(config: Mapping[str, Any]) -> Any:
    """What a config says about quantisation; None when it says nothing."""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    return config.get("quantization_config", nested)


def dequantised(checkpoint: Checkpoint, called: object) -> Checkpoint:
    """The view of a quantised checkpoint; others are returned as they are. `called` names the model in errors.

    Raises `ModelError` for a kind that is not known and for stored tensors that do not fit each other.
    """
    stated = quantisation(checkpoint.config)
    if stated is None:
        return checkpoint
    if not isinstance(stated, dict):
        raise ModelError(
            f"{called} is quantised in a way that its config does not tell",
            wanted="quantization_config: {…}",
            found=ascii(stated)[:60],
            do=INSTEAD,
        )
    bits = stated.get("load_in_4bit") or stated.get("load_in_8bit")
    kind = str(stated.get("quant_method", "bitsandbytes" if bits else None))
    if kind not in formats():
        raise ModelError(
            f"{called} is quantised in a way that plait does not read",
            wanted="one of " + ", ".join(sorted(formats())),
            found=ascii(kind)[:60],
            do=INSTEAD,
        )
    try:
        weights = formats()[kind](stated, checkpoint)
    except ModelError as error:
        raise ModelError(
            f"{called}, quantised with {kind}, cannot be read: {error.what}",
            wanted=error.wanted,
            found=error.found,
            do=error.do,
        ) from error
    return Dequantised(checkpoint, weights, kind)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(text := plain.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    return plain


def _stated(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(name := part.get(key), str) and CODES.get(name) in MERGEABLE:
                return CODES[name]
    return "BF16"
