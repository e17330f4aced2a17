"""A model directory: config.json and weights, in one file or in shards.

For each kind of weights an index wins over a single file, safetensors win over pickles; shards without an index are
read too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from plait.checkpoint.files import StoredFiles
from plait.checkpoint.header import Extent, read_header, unreadable
from plait.errors import ModelError
from plait.types import TensorSpec

_OTHERS = ("adapter_", "training_args", "optimizer", "scheduler", "rng_state", ".")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_SINGLE = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin", ".pt": "model.pt"}
_WEIGHTS = "*.safetensors, or *.bin / *.pt of torch.save"


class AdapterAlone(ModelError):  # noqa: N818
    """A LoRA adapter where a model is wanted. `base`: the model that it says it was trained on, if it says so."""

    def __init__(self, folder: Path) -> None:
        stated = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        self.base = stated if isinstance(stated, str) and stated.strip() else None
        super().__init__(
            f"{folder} has no weights",
            wanted=_WEIGHTS,
            found=f"a LoRA adapter of {self.base}" if self.base else "a LoRA adapter",
            do=f"name it as {self.base or 'BASE'}+{folder.name}",
        )


def read_json(path: Path, limit: int = 64_000_000) -> dict[str, Any]:
    """A JSON object from a model directory; `ModelError` for anything else. `limit`: largest file, bytes."""
    try:
        if path.stat().st_size > limit:
            raise ModelError(
                f"{path} is too large",
                wanted=f"at most {limit} bytes",
                found=f"{path.stat().st_size}",
                do="check what the file is; download or copy it again",
            )
        text = path.read_text("utf-8")
        data = json.loads(text)
        if _HALF.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # half a character cannot be written again
    except OSError as error:
        raise unreadable(path, error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON", found=str(error), do="download or copy the file again") from error
    if not isinstance(data, dict):
        raise ModelError(
            f"{path} does not hold a JSON object",
            wanted="{…}",
            found=type(data).__name__,
            do="download or copy the file again",
        )
    return data


def weight_files(folder: Path, listed: Collection[str] | None = None) -> list[Path]:
    """The files that hold the weights of a model directory, in shard order; `ModelError` when there are none.

    `listed`: the names of all files that the folder will have; those that it has by default.
    """
    if listed is None:
        listed = [path.name for path in folder.iterdir() if path.is_file()]
    for suffix, single in _SINGLE.items():
        index = folder / f"{single}.index.json"
        if index.name in listed:
            return _indexed(folder, index, listed)
        if single in listed:
            return [folder / single]
        files = sorted(folder / name for name in listed if name.endswith(suffix) and "/" not in name)
        shards = [p for p in files if re.search(r"-of-\d+\.\w+$", p.name)]
        others = [p for p in files if not p.name.startswith(_OTHERS)]
        if shards:
            _complete(folder, shards)
            return shards
        if len(others) == 1:
            return others
        if len(others) > 1:
            raise ModelError(
                f"{folder} has several weight files and nothing that says which belong together",
                wanted=f"{single} or {index.name}",
                found=", ".join(p.name for p in others[:4]),
                do="keep one of them, or name the file itself as the model",
            )
    if "adapter_config.json" in listed:
        raise AdapterAlone(folder)
    raise ModelError(
        f"{folder} has no weights",
        wanted=_WEIGHTS,
        found=", ".join(sorted(listed)[:6]) or "an empty folder",
        do="check the path of the model",
    )


def _indexed(folder: Path, index: Path, listed: Collection[str]) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        found = f"weight_map: {str(weight_map)[:80]}"
        raise ModelError(
            f"{index} has no weight_map",
            wanted="weight_map: {tensor: file}",
            found=found,
            do="download or copy the index again",
        )
    if not weight_map:
        raise ModelError(
            f"{index} names no tensor",
            wanted="weight_map: {tensor: file}",
            found="weight_map: {}",
            do="download or copy the index again",
        )
    names = list(dict.fromkeys(weight_map.values()))
    for name in names:
        if name != os.path.basename(name) or name in ("", ".", "..") or not name.isprintable():
            raise ModelError(
                f"{index} names a file outside its folder",
                wanted="file names",
                found=ascii(name[:80]),
                do="get the model elsewhere",
            )
    missing = [name for name in names if name not in listed]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its {len(names)} shards",
            wanted=f"the files that {index.name} names",
            found=f"no {', no '.join(missing[:3])}",
            do="download the missing files",
        )
    return [folder / name for name in sorted(names)]


def check_index(folder: Path, files: list[Path], specs: Mapping[str, TensorSpec]) -> None:
    """Refuse weights that lack a tensor of their index: a file among them is not the one that was meant."""
    index = folder / f"{_SINGLE[files[0].suffix]}.index.json"
    lost = [name for name in read_json(index)["weight_map"] if name not in specs] if index.is_file() else []
    if lost:
        raise ModelError(
            f"{index} names {len(lost)} tensors that are in none of its files",
            wanted="every tensor of the index",
            found=f"no {', no '.join(map(ascii, lost[:3]))}",
            do="download the files again",
        )


def _complete(folder: Path, shards: list[Path]) -> None:
    last = re.search(r"-of-0*(\d+)\.", shards[0].name)
    if last and int(last[1]) != len(shards):
        raise ModelError(
            f"{folder} lacks shards", wanted=f"{last[1]} files", found=f"{len(shards)}", do="download the missing files"
        )


def joined(parts: Iterable[Mapping[str, Extent]]) -> dict[str, Extent]:
    """The tensors of several files; `ModelError` for one that is in two of them."""
    extents: dict[str, Extent] = {}
    for part in parts:
        for name, extent in part.items():
            if name in extents:
                raise ModelError(
                    f"the tensor {name!r} is in two files",
                    found=f"{extents[name].path.name} and {extent.path.name}",
                    do="remove the file that does not belong to the model",
                )
            extents[name] = extent
    return extents


class SafetensorsFiles(StoredFiles):
    """One or more safetensors files as a `Checkpoint`."""

    def __init__(self, files: list[Path], config: Mapping[str, Any]) -> None:
        super().__init__(joined(read_header(path) for path in files), config)
