"""An adapter's tensors, sorted by what they do to which module of the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plait.checkpoint import Checkpoint
from plait.checkpoint.adapter.settings import Settings, settings
from plait.checkpoint.directory import SafetensorsFiles, read_json
from plait.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<part>A|B)(?:\.default)?\.(?P<kind>weight|bias)"
    r"|lora_embedding_(?P<table>A|B)(?:\.default)?(?:\.weight)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|token_adapter\.(?P<tokens>trainable_tokens_delta)(?:\.default)?)"
)
_COPY = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_BEFORE = ".original_module."  # a copy of what the base had in the place of a saved module


@dataclass(frozen=True)
class Factors:
    """A low-rank change of a module's weight: scale * B @ A, with A `[rank, in]` and B `[out, rank]`.

    Names are those of the adapter's file. For an embedding the change is (B @ A) transposed; for a convolution A is
    `[rank, in, …]`; for `experts` packed in one tensor A is `[experts * rank, in]`, B `[out, rank * experts]`.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    embedding: bool = False
    bias: str | None = None  # of B: the change of the module's bias is scale times this
    magnitude: str | None = None  # DoRA: the length that each output's weights are given
    # how many wrappers of the same module lie inside this one, for target_parameters; rank and scale are the module's, and
    # those of the parameter are known with its name
    inner: int | None = None


@dataclass(frozen=True)
class Adapter:
    """An opened adapter."""

    folder: Path
    settings: Settings
    checkpoint: Checkpoint = field(repr=False)
    files: tuple[Path, ...]
    factors: tuple[Factors, ...]
    replaced: Mapping[str, str]  # name in the base -> the adapter's tensor that stands in its place
    tokens: Mapping[str, str]  # module -> the adapter's tensor of new rows for `settings.tokens_of(module)`

    def read(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """(A, B) of a module, as they are stored."""
        return self.checkpoint.read(factors.a), self.checkpoint.read(factors.b)


def open_adapter(folder: Path) -> Adapter:
    """An adapter's folder, headers only; raises `ModelError` for what is no LoRA, broken, or not known here."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        found = "a model" if (folder / "config.json").is_file() else "neither file"
        raise ModelError(
            f"{folder} is not an adapter",
            wanted="adapter_config.json and adapter_model.safetensors",
            found=found,
            do="name the adapter's folder after '+', the base's before it",
        )
    chosen = settings(path, read_json(path))
    weights = next((p for n in ("safetensors", "bin") if (p := folder / f"adapter_model.{n}").is_file()), None)
    if weights is None:
        raise ModelError(
            f"the adapter {folder} has no weights",
            wanted="adapter_model.safetensors",
            found="adapter_config.json alone",
            do="download the missing file",
        )
    if weights.suffix == ".safetensors":
        checkpoint: Checkpoint = SafetensorsFiles([weights], {})
    else:
        from plait.checkpoint.pickled import PickledFiles

        checkpoint = PickledFiles([weights], {})
    parts: dict[str, dict[str, str]] = {}
    replaced, tokens = {}, {}
    every = [name.removeprefix("base_model.model.") for name in checkpoint.specs]
    for name, own in zip(checkpoint.specs, every, strict=True):
        match = _PART.fullmatch(own)
        if match is None:
            if re.search(r"\.(lora_|token_adapter|ada_|ia3_)", own):
                raise _unknown(folder, name)
            if _BEFORE in own and own.replace(_BEFORE, ".") in {_COPY.sub("", n) for n in every}:
                continue
            replaced[_COPY.sub("", own).replace(_BEFORE, ".")] = name
        elif match["tokens"]:
            tokens[match["module"]] = name
        else:
            part = match["part"] or match["table"] or "magnitude"
            if match["kind"] == "bias":
                if part == "A":
                    raise _unknown(folder, name)
                part = "bias"
            parts.setdefault(match["module"], {})[part] = name
            if match["table"]:
                parts[match["module"]]["table"] = name
    factors = [_factors(folder, chosen, checkpoint, module, found) for module, found in parts.items()]
    if not (factors or replaced or tokens):
        raise ModelError(
            f"the adapter {folder} holds no tensors",
            wanted="lora_A and lora_B",
            found="none",
            do="download or save the adapter again",
        )
    deepest = {
        f.module: max(g.inner or 0 for g in factors if g.module == f.module) for f in factors if f.inner is not None
    }
    turned = [f if f.inner is None else replace(f, inner=deepest[f.module] - f.inner) for f in factors]
    return Adapter(folder, chosen, checkpoint, (weights, path), tuple(turned), replaced, tokens)


def _factors(folder: Path, chosen: Settings, checkpoint: Checkpoint, module: str, found: Mapping[str, str]) -> Factors:
    if "A" not in found or "B" not in found:
        raise ModelError(
            f"the adapter {folder} is not whole at {module}",
            wanted="lora_A and lora_B",
            found=", ".join(ascii(name) for name in found.values()),
            do="download or save the adapter again",
        )
    a, b = checkpoint.specs[found["A"]], checkpoint.specs[found["B"]]
    own = module.replace(".base_layer", "")
    packed = bool(chosen.parameters) and len(a.shape) == 2 and "table" not in found
    rank = chosen.rank_of(own)
    inside = a.shape[0] if a.shape else 0
    if len(a.shape) < 2 or len(b.shape) < 2 or b.shape[1] != inside or (inside != rank and not packed):
        raise ModelError(
            f"the adapter {folder} does not fit its own rank at {own}",
            wanted=f"A of {rank} rows and B of {rank} columns, as {chosen.path.name} says",
            found=f"A {list(a.shape)}, B {list(b.shape)}",
            do="take the adapter_config.json that was saved with these weights",
        )
    if not (a.floating and b.floating):
        raise ModelError(
            f"the adapter {folder} is quantised at {own}",
            wanted="floating numbers",
            found=f"{a}, {b}",
            do="save the adapter again in bfloat16 or float32",
        )
    if chosen.dora != ("magnitude" in found):
        raise ModelError(
            f"the adapter {folder} contradicts its configuration at {own}",
            wanted=f'"use_dora": {str(not chosen.dora).lower()}, or {"a" if chosen.dora else "no"} magnitude vector',
            found=f'"use_dora": {str(chosen.dora).lower()}',
            do="take the adapter_config.json that was saved with these weights",
        )
    return Factors(
        own,
        found["A"],
        found["B"],
        rank,
        chosen.scale_of(own),
        embedding="table" in found,
        bias=found.get("bias"),
        magnitude=found.get("magnitude"),
        inner=module.count(".base_layer") if packed else None,
    )


def _unknown(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"the adapter {folder} has a tensor that plait does not know",
        wanted="lora_A, lora_B, lora_embedding_A and _B, lora_magnitude_vector, trainable_tokens_delta, whole weights",
        found=ascii(name)[:120],
        do="merge it into its base with peft (merge_and_unload), and name the result",
    )
