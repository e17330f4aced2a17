"""An adapter's folder, in PEFT's format: the weights, written as they come, and what says how to read them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from plait.checkpoint.dtypes import spec_of
from plait.errors import OutputError, PlaitError, reason
from plait.types import CODES, DTYPES, MERGEABLE
from plait.writer import check_output

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PLACE = 96  # bytes that an entry of the header may need besides its name
_OWN = (WEIGHTS, CONFIG, "README.md", "plait_provenance.json", "adapter_model.bin")


class AdapterWriter:
    """The folder of an adapter that is written tensor by tensor; how many there are and how large need not be known before.

    `names` are those that may come: they tell how much room the header needs. Left with an error, nothing stays.
    """

    def __init__(self, out: Path, names: Iterable[str], nbytes: int, inputs: Iterable[Path], force: bool) -> None:
        check_output(out, nbytes, inputs, force)
        self._room = sum(len(json.dumps(name, ensure_ascii=False).encode()) + _PLACE for name in names) + _PLACE
        self._room += -(8 + self._room) % 8
        self.out, self._partial = out, out / f"{WEIGHTS}.partial"
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._at = 0

    def __enter__(self) -> AdapterWriter:
        self._made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # closed in __exit__
            self._file.write(b" " * (8 + self._room))
        except OSError as error:
            self._clear()
            raise _failed(self.out, error) from error
        return self

    def _clear(self) -> None:
        """Remove what was begun."""
        for name in _OWN:
            with suppress(OSError):
                (self.out / f"{name}.partial").unlink()
        for folder in self._made:
            with suppress(OSError):  # not empty: the adapter is in it
                folder.rmdir()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; wide dtypes first, so that all are aligned."""
        spec = spec_of(tensor)
        end = self._at + spec.nbytes
        self._entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [self._at, end]}
        try:
            self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise _failed(self.out, error) from error
        self._at = end

    @property
    def nbytes(self) -> int:
        """Of all tensors so far."""
        return self._at

    def finish(self, config: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Put the header before the tensors, and the small files beside them; the folder is whole then."""
        header = json.dumps(self._entries, separators=(",", ":"), ensure_ascii=False).encode()
        try:
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
            self._file.flush()
            os.fsync(self._file.fileno())
            texts = {**texts, CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
            for name, text in texts.items():
                (self.out / f"{name}.partial").write_text(text, "utf-8", newline="\n")
            for name in _OWN:
                (self.out / name).unlink(missing_ok=True)
            for name in (WEIGHTS, *texts):
                os.replace(self.out / f"{name}.partial", self.out / name)
        except OSError as error:
            raise _failed(self.out, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # of a full disk, which was told
            self._file.close()
        self._clear()


def factor_code(dtype: str) -> str:
    """The safetensors code of the dtype in which factors are asked for; `PlaitError` for one that they cannot have."""
    code = CODES.get(dtype)
    if code not in MERGEABLE:
        wanted = ", ".join(DTYPES[c].name for c in MERGEABLE)
        raise PlaitError(
            f"factors cannot be written in {dtype!r}", wanted=wanted, found=dtype, do="pass one of these as --dtype"
        )
    return code


def configuration(
    base: str,
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    targets: list[str],
    whole: list[str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """adapter_config.json: each module its rank, every scale 1. `config`: the model's; `ranks`: module -> rank, of at least 1."""
    largest = max(ranks.values(), default=1)
    pattern = {module: rank for module, rank in ranks.items() if rank != largest}
    return {
        "base_model_name_or_path": base,
        "peft_type": "LORA",
        "task_type": _task(config),
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": targets,
        "modules_to_save": whole or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        **more,
    }


def _task(config: Mapping[str, Any]) -> str | None:
    """PEFT's name for what a model is for; None where it has none."""
    name = str((config.get("architectures") or [""])[0])
    if "SequenceClassification" in name:
        return "SEQ_CLS"
    if config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM"
    return (
        "CAUSAL_LM" if not name or "CausalLM" in name or "LMHead" in name or "ConditionalGeneration" in name else None
    )


def _failed(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing to {out} failed",
        wanted="a disk that takes the adapter",
        found=reason(error),
        do="free some space, or choose another OUT",
    )
