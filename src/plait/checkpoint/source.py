"""From a model reference to its tensors: a local path, or a Hub id, in huggingface_hub's cache or still on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plait.checkpoint import Checkpoint, hub
from plait.checkpoint.directory import SafetensorsFiles, check_index, read_json, weight_files
from plait.checkpoint.header import unreadable
from plait.checkpoint.quantised import dequantised
from plait.checkpoint.remote import RemoteFiles
from plait.errors import ModelError
from plait.types import ModelRef

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Opened:
    """A model reference, its folder (None for a file), its pinned revision (None for local models), its tensors.

    Of a model on the Hub the folder may lack files that `repo` lists, until they are fetched.
    """

    ref: ModelRef
    folder: Path | None
    revision: str | None
    checkpoint: Checkpoint = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)  # that hold the weights, on this disk
    adapter_revision: str | None = None
    words: Path | None = None  # a folder whose tokenizer is the model's instead of the one in `folder`
    repo: hub.Repo | None = field(default=None, repr=False)
    remote: RemoteFiles | None = field(default=None, repr=False)  # weights that were not all in the cache when opened

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.checkpoint.config)

    def has(self, name: str) -> bool:
        """Whether the folder has this file, or will have it once it is fetched."""
        there = self.folder is not None and (self.folder / name).is_file()
        return there or (self.repo is not None and name in self.repo.files)

    @property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer; of a model that is a file, it may lie beside it."""
        return self.words or self.folder or next((path.parent for path in self.files), None)

    def mark(self, name: str) -> object:
        """What tells this file from others without looking into it: the Hub's hash, or where it lies; None without one."""
        if self.repo and name in self.repo.files:
            return self.repo.files[name]
        return self.folder if self.has(name) else None

    def missing(self, tensors: Iterable[str]) -> dict[str, int]:
        """The weight files that reading these tensors would still bring from the Hub: `model: file` -> bytes."""
        if self.repo is None or self.remote is None:
            return {}
        files = self.repo.files
        return {f"{self.ref}: {name}": files[name].size for name in self.repo.lacks(self._shards(tensors))}

    def _shards(self, tensors: Iterable[str]) -> list[str]:
        # under a view (an adapter, other names) the tensors are others than those in the files
        return self.remote.shards(tensors if self.checkpoint is self.remote else None) if self.remote else []


def open_model(
    ref: ModelRef,
    *,
    cache: Path | None = None,
    relative_to: Path | None = None,
    lora_dtype: str | None = None,
    fetch: bool = True,
) -> Opened:
    """Open the model that `ref` names, headers only. `relative_to`: a second place to look for relative paths.

    `fetch`: bring a model on the Hub into the cache. Without it only headers and small files travel (for weights in
    safetensors), and a tensor when it is read.
    `lora_dtype`: the dtype code to which weights with an adapter are rounded; None for what `Adapted` has by default.
    Raises `ModelError` when it cannot be found, reached or read.
    """
    if ref.adapter:
        bare = replace(ref, adapter=None, adapter_revision=None)
        base = open_model(bare, cache=cache, relative_to=relative_to, fetch=fetch)
        return adapted(replace(base, ref=ref), cache=cache, relative_to=relative_to, lora_dtype=lora_dtype)
    local = local_path(ref.path, relative_to)
    repo = None if local else _look(ref, cache, planned=not fetch)
    folder = repo.folder if repo else local
    assert folder is not None
    if folder.is_file():
        weights = _weights([folder], {"architectures": [ref.architecture]} if ref.architecture else {})
        return Opened(ref, None, None, weights, getattr(weights, "files", (folder,)))
    if not os.access(folder, os.R_OK | os.X_OK):
        raise unreadable(folder, "a folder that may not be looked into")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    classes = config.get("architectures") or []
    if not ref.architecture and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ModelError(
            f"{folder / 'config.json'} names no class",
            wanted='"architectures": ["…"]',
            found=str(classes)[:80],
            do="mend it, or name the class with override_architecture",
        )
    if ref.architecture:
        config = {**config, "architectures": [ref.architecture]}
    files = weight_files(folder, repo.files if repo and repo.files else None)
    if repo and fetch:
        hub.fetch(repo, [path.name for path in files])
    checkpoint = _remote(repo, files, config) or _weights(files, config)
    check_index(folder, files, checkpoint.specs)
    remote = checkpoint if isinstance(checkpoint, RemoteFiles) else None
    here = remote.local if remote else files
    weights = dequantised(checkpoint, ref)
    return Opened(ref, folder, repo.revision if repo else None, weights, tuple(here), repo=repo, remote=remote)


def fetched(opened: Opened, tensors: Iterable[str] | None, side_files: bool) -> Opened:
    """The model with what a merge needs of it in the cache: the files with these tensors (None: no weights), those beside."""
    if opened.repo is None:
        return opened
    hub.fetch(opened.repo, opened.repo.side_files(planned=not side_files))
    if opened.remote is None or tensors is None:
        return opened
    before = opened.remote.local
    opened.remote.fetch(opened._shards(tensors))
    others = tuple(path for path in opened.files if path not in before)  # of an adapter
    return replace(opened, files=(*opened.remote.local, *others))


def _look(ref: ModelRef, cache: Path | None, planned: bool) -> hub.Repo:
    """A repository of which the cache has the side files; `planned`: only the small ones that planning needs."""
    repo = hub.look(ref, cache)
    hub.fetch(repo, repo.side_files(planned))
    return repo


def _remote(repo: hub.Repo | None, files: list[Path], config: dict[str, Any]) -> RemoteFiles | None:
    """The weights of a Hub model that are not all in the cache; pickles cannot be read in part, and are fetched."""
    names = [path.name for path in files]
    if repo is None or not repo.lacks(names):
        return None
    if files[0].suffix != ".safetensors":
        hub.fetch(repo, names)
        return None
    index = repo.folder / "model.safetensors.index.json"
    return RemoteFiles(repo, names, config, read_json(index)["weight_map"] if index.is_file() else {})


def adapted(
    base: Opened, *, cache: Path | None = None, relative_to: Path | None = None, lora_dtype: str | None = None
) -> Opened:
    """An opened base with the adapter that its reference names, or as it is if that names none."""
    from plait.checkpoint.adapter import Adapted, open_adapter

    ref = base.ref
    if not ref.adapter:
        return base
    folder, repo = adapter_folder(ModelRef(ref.adapter, ref.adapter_revision), cache, relative_to)
    adapter = open_adapter(folder)
    checkpoint = Adapted(base.checkpoint, adapter, lora_dtype)
    own = adapter.folder if checkpoint.resized and any((adapter.folder / n).is_file() for n in _TOKENIZERS) else None
    return replace(
        base,
        checkpoint=checkpoint,
        words=own,
        files=(*base.files, *adapter.files),
        adapter_revision=repo.revision if repo else None,
    )


def adapter_folder(
    ref: ModelRef, cache: Path | None = None, relative_to: Path | None = None
) -> tuple[Path, hub.Repo | None]:
    """The folder of an adapter, brought into the cache from the Hub if need be."""
    if local := local_path(ref.path, relative_to):
        return local, None
    repo = hub.look(ref, cache)
    hub.fetch(repo, [*repo.side_files(), *(name for name in repo.files if name.startswith("adapter_model."))])
    return repo.folder, repo


def is_adapter(ref: ModelRef, cache: Path | None = None, relative_to: Path | None = None) -> bool:
    """Whether a reference names an adapter, and not a model."""
    if local := local_path(ref.path, relative_to):
        return (local / "adapter_config.json").is_file()
    return "adapter_config.json" in hub.look(ref, cache).files


def _weights(files: list[Path], config: dict[str, Any]) -> Checkpoint:
    if files[0].suffix == ".safetensors":
        return SafetensorsFiles(files, config)
    if files[0].suffix == ".gguf":
        from plait.checkpoint.gguf import open_gguf

        return open_gguf(files[0], config)
    from plait.checkpoint.pickled import PickledFiles

    return PickledFiles(files, config)


def local_path(path: str, relative_to: Path | None = None) -> Path | None:
    """The path on this disk that `path` means, if there is one."""
    expanded = Path(os.path.expanduser(path))
    for candidate in (expanded, *([relative_to / expanded] if relative_to else [])):
        if candidate.exists():
            return candidate
    return None
