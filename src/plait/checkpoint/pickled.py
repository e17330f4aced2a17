"""Weights in torch's pickle format, through torch's safe loader with memory mapping, and only that: no code runs.

Where the system says which bytes of a file are mapped where, tensors are read from the file, at the place that they were mapped
from: a mapped file that becomes shorter would kill the process.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.checkpoint import Rows, cut
from plait.checkpoint.dtypes import spec_of
from plait.checkpoint.files import StoredFiles
from plait.checkpoint.header import Extent
from plait.errors import ModelError
from plait.lazy import torch
from plait.types import TensorSpec

_REFUSALS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    AttributeError,
    TypeError,
    OSError,
)
#: where trainers put a state dict
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PICKLE = 16 << 20  # bytes; a tensor takes about a hundred
_AGAIN = "download or copy the file again"
_CONVERT = "convert it to safetensors where you trust it"


class PickledFiles(StoredFiles):
    """One or more `.bin` / `.pt` files as a `Checkpoint`; tensors whose bytes are not found in one stretch stay mapped."""

    def __init__(self, files: list[Path], config: Mapping[str, Any]) -> None:
        extents: dict[str, Extent] = {}
        self._mapped: dict[str, torch.Tensor] = {}
        specs: dict[str, TensorSpec] = {}
        for path in files:
            tensors = _load(path)
            maps = _maps(path)
            for name, tensor in tensors.items():
                if name in specs:
                    raise ModelError(
                        f"the tensor {name!r} is in two files",
                        found=f"again in {path.name}",
                        do="remove the file that does not belong to the model",
                    )
                specs[name] = spec_of(tensor, name)
                offset = _offset(tensor, specs[name].nbytes, maps)
                if offset is None:
                    self._mapped[name] = tensor
                else:
                    extents[name] = Extent(path, offset, specs[name])
        super().__init__(extents, config)
        self.specs = specs

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        return cut(self._mapped[name], rows) if name in self._mapped else super().read(name, rows)


#: a stretch of memory: its first address, the one after its last, the offset in the file of the first
_Map = tuple[int, int, int]


def _maps(path: Path) -> list[_Map]:
    """Where this process has the file mapped; none where the system does not say."""
    try:
        wanted, lines = os.stat(path), Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = []
    for fields in map(str.split, lines):
        major, minor = (int(part, 16) for part in fields[3].split(":"))
        if (int(fields[4]), os.makedev(major, minor)) == (wanted.st_ino, wanted.st_dev):
            start, stop = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, stop, int(fields[2], 16)))
    return found


def _offset(tensor: torch.Tensor, nbytes: int, maps: Sequence[_Map]) -> int | None:
    """Where the tensor's bytes begin in the file, if they lie there in one stretch."""
    at = tensor.data_ptr()
    whole = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    return next((at - start + offset for start, stop, offset in maps if whole and start <= at <= stop - nbytes), None)


def _named(name: object) -> bool:
    return isinstance(name, str) and name.isprintable()


def _plain(value: object) -> bool:
    """Whether it is a tensor whose bytes are its numbers: not sparse, quantised, on a device, or larger than they."""
    if not isinstance(value, torch.Tensor):
        return False
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    return plain and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _offence(said: str) -> str:
    """What the loader objected to, without its advice to load the file unsafely."""
    name = re.search(r"(?:GLOBAL|global) ([\w.]+)", said)
    return f"a reference to {name[1]}" if name else "something else, or a damaged file"


def _unwrapped(data: Any) -> Any:
    """The state dict inside of what a trainer saves around it, however deep; what is none is given back."""
    for _ in range(8):  # a pickle may contain itself
        if not isinstance(data, dict) or all(isinstance(value, torch.Tensor) for value in data.values()):
            break
        inner = next((data[key] for key in _WRAPPERS if isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        data = inner
    return data


def _refuse_bombs(path: Path) -> None:
    """torch.save compresses nothing: an archive that holds more than its file, or a huge pickle, is not of its making."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is a damaged archive", wanted="a file of torch.save", found=str(error), do=_AGAIN
        ) from error
    held = sum(entry.file_size for entry in entries)
    longest = max((entry.file_size for entry in entries if entry.filename.endswith("data.pkl")), default=0)
    if held > size or longest > PICKLE or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(
            f"{path} is not as torch.save writes it",
            wanted=f"an archive that is not compressed, with a pickle of at most {PICKLE >> 20} MiB",
            found=f"{held} bytes in a file of {size}, a pickle of {longest}",
            do=_AGAIN,
        )


def _load(path: Path) -> dict[str, torch.Tensor]:
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is not in torch's zip format",
            wanted="a file of torch.save (PyTorch 1.6 or newer)",
            found="a legacy pickle, or something else",
            do=_CONVERT,
        )
    _refuse_bombs(path)
    try:
        data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _REFUSALS as error:
        raise ModelError(
            f"{path} was refused by PyTorch's safe loader",
            wanted="tensors and plain containers only",
            found=_offence(str(error)),
            do=_CONVERT,
        ) from error
    data = _unwrapped(data)
    if not isinstance(data, dict) or not data:
        raise ModelError(f"{path} holds no state dict", wanted="{name: tensor}", found=type(data).__name__, do=_CONVERT)
    stray = [ascii(name)[:80] for name, value in data.items() if not (_named(name) and _plain(value))]
    if stray:
        raise ModelError(
            f"{path} holds more than plain tensors", wanted="{name: tensor}", found=", ".join(stray[:4]), do=_CONVERT
        )
    return data
