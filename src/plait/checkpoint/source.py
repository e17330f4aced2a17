"""From a model reference to a folder on this disk: a local path, or a Hub id through huggingface_hub's cache."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait.checkpoint import Checkpoint
from plait.checkpoint.directory import SafetensorsFiles, check_index, read_json, weight_files
from plait.errors import ModelError
from plait.types import ModelRef

#: what a merge may need besides the weights
SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "LICENSE*", "README.md")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True)
class Opened:
    """A model reference, its folder (None for a file), its pinned revision (None for local models), its tensors."""

    ref: ModelRef
    folder: Path | None
    revision: str | None
    checkpoint: Checkpoint = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)  # that hold the weights
    adapter_revision: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.checkpoint.config)


def open_model(
    ref: ModelRef, *, cache: Path | None = None, relative_to: Path | None = None, lora_dtype: str | None = None
) -> Opened:
    """Open the model that `ref` names, headers only. `relative_to`: a second place to look for relative paths.

    `lora_dtype`: the dtype code to which weights with an adapter are rounded; None for what `Adapted` has by default.
    Raises `ModelError` when it cannot be found, reached or read.
    """
    if ref.adapter:
        bare = replace(ref, adapter=None, adapter_revision=None)
        base = open_model(bare, cache=cache, relative_to=relative_to)
        return _adapted(ref, base, cache, relative_to, lora_dtype)
    local = local_path(ref.path, relative_to)
    folder, revision = (local, None) if local else _download(ref, cache)
    if folder.is_file():
        return Opened(ref, None, None, _weights([folder], {}), (folder,))
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    classes = config.get("architectures") or []
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ModelError(
            f"{folder / 'config.json'} names no class", wanted='"architectures": ["…"]', found=str(classes)[:80]
        )
    if ref.architecture:
        config = {**config, "architectures": [ref.architecture]}
    if "quantization_config" in config:
        kind = config["quantization_config"]
        raise ModelError(
            f"{ref} is quantised",
            wanted="weights in float32, float16 or bfloat16",
            found=str(kind.get("quant_method") if isinstance(kind, dict) else kind),
            do="use the model that it was quantised from",
        )
    files = weight_files(folder)
    checkpoint = _weights(files, config)
    check_index(folder, files, checkpoint.specs)
    return Opened(ref, folder, revision, checkpoint, tuple(files))


def _adapted(ref: ModelRef, base: Opened, cache: Path | None, relative_to: Path | None, dtype: str | None) -> Opened:
    from plait.checkpoint.adapter import Adapted, open_adapter

    assert ref.adapter
    local = local_path(ref.adapter, relative_to)
    named = ModelRef(ref.adapter, ref.adapter_revision)
    folder, revision = (local, None) if local else _download(named, cache)
    adapter = open_adapter(folder)
    checkpoint = Adapted(base.checkpoint, adapter, dtype)
    return replace(base, ref=ref, checkpoint=checkpoint, files=(*base.files, *adapter.files), adapter_revision=revision)


def _weights(files: list[Path], config: dict[str, Any]) -> Checkpoint:
    if files[0].suffix == ".safetensors":
        return SafetensorsFiles(files, config)
    if files[0].suffix == ".gguf":
        raise ModelError(f"{files[0]} is a GGUF file", wanted="safetensors", do="convert it to a model directory first")
    from plait.checkpoint.pickled import PickledFiles

    return PickledFiles(files, config)


def local_path(path: str, relative_to: Path | None = None) -> Path | None:
    """The path on this disk that `path` means, if there is one."""
    expanded = Path(os.path.expanduser(path))
    for candidate in (expanded, *([relative_to / expanded] if relative_to else [])):
        if candidate.exists():
            return candidate
    return None


def _download(ref: ModelRef, cache: Path | None) -> tuple[Path, str]:
    if not _HUB_ID.fullmatch(ref.path):
        raise ModelError(
            f"there is no {ref.path}",
            wanted="a folder on this disk, or a Hub id such as org/name",
            found="neither",
            do="check the path; relative paths start at the current directory or beside the recipe",
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def snapshot(weights: str, local: bool) -> Path:
        # the same patterns from the cache as from the Hub: what was never wanted is not missing
        wanted = [*SIDE_FILES, weights]
        return Path(
            snapshot_download(
                ref.path,
                revision=ref.revision,
                cache_dir=cache,
                allow_patterns=wanted,
                ignore_patterns=["*/*"],
                local_files_only=local,
            )
        )

    try:
        if _reachable():
            files = HfApi().list_repo_files(ref.path, revision=ref.revision)
            safe = any(name.endswith(".safetensors") for name in files)
            folder = snapshot("*.safetensors" if safe else "*.bin", False)
        else:
            folder = snapshot("*.safetensors", True)
            if not any(folder.glob("*.safetensors")):
                folder = snapshot("*.bin", True)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise _cannot_get(ref, error) from error
    return folder, folder.name


def _reachable() -> bool:
    """Whether the Hub's host answers, asked once, shortly: a mistyped local path should not cost half a minute."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return False
    if address.scheme in getproxies():
        return True
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _cannot_get(ref: ModelRef, error: Exception) -> ModelError:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = (
        "neither: the Hub cannot be reached, or HF_HUB_OFFLINE is set, and the model is not in the cache",
        "check the path and the network",
    )
    causes: dict[type[Exception], tuple[str, str]] = {
        GatedRepoError: ("a gated model", f"ask for access on its page, then run: hf auth login ({ref.path})"),
        RevisionNotFoundError: (f"no revision {ref.revision!r}", "check the part after '@'"),
        RepositoryNotFoundError: (
            "no such model, or a private one",
            "check the spelling; if it is private: hf auth login",
        ),
        LocalEntryNotFoundError: offline,
        OfflineModeIsEnabled: offline,
    }
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    found, do = causes.get(type(error), (said, "try again later"))
    return ModelError(f"{ref} cannot be had", wanted="a folder on this disk, or a model on the Hub", found=found, do=do)
