"""Hostile and broken model directories, each a small program: it gets a good model's folder and spoils it.

`HEADERS` and the others map a name to the program; each returns the file that an error must name.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import make

Spoil = Callable[[Path], Path]


def file(folder: Path, header: bytes | str | dict[Any, Any], data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of exactly this header and data; `length` is what it claims of its header."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


#: headers that lie: (header, data, claimed length)
LIES: dict[str, tuple[Any, bytes, int | None]] = {
    "empty file": ("", b"", 0),
    "no JSON": ("not JSON at all", b"", None),
    "no object": ("[1, 2]", b"", None),
    "no UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "UTF-16": ('{"x": ' + json.dumps(entry()) + "}", bytes(8), None),
    "deep JSON": ("[" * 200_000, b"", None),
    "deep metadata": ('{"__metadata__": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, b"", None),
    "digits": ('{"x": ' + "9" * 10_000 + "}", b"", None),
    "length past the end": ({"x": entry()}, bytes(8), 10_000),
    "length of 2^63": ({"x": entry()}, bytes(8), 2**63),
    "length of 2^64-1": ({"x": entry()}, bytes(8), 2**64 - 1),
    "length of 0": ({"x": entry()}, bytes(8), 0),
    "truncated data": ({"x": entry()}, bytes(5), None),
    "data after the end": ({"x": entry()}, bytes(80), None),
    "past the end": ({"x": entry(), "y": entry(800, 808)}, bytes(16), None),
    "overlap": ({"x": entry(), "y": entry(4, 12)}, bytes(12), None),
    "same bytes twice": ({"x": entry(), "y": entry()}, bytes(8), None),
    "gap": ({"x": entry(), "y": entry(16, 24)}, bytes(24), None),
    "gap at the start": ({"x": entry(8, 16)}, bytes(16), None),
    "end before begin": ({"x": entry(8, 0)}, bytes(8), None),
    "negative offset": ({"x": entry(-8, 0)}, bytes(8), None),
    "fractional offset": ({"x": entry(0.0, 8.0)}, bytes(8), None),
    "boolean offset": ({"x": entry(False, 8)}, bytes(8), None),
    "offset as text": ({"x": entry("0", "8")}, bytes(8), None),
    "offset beyond 2^64": ({"x": entry(0, 2**65, (2**63,))}, bytes(8), None),
    "overflowing shape": ({"x": entry(0, 0, (2**32, 2**32))}, b"", None),
    "shape that wraps to 8 bytes": ({"x": entry(0, 8, (2**62 + 2,))}, bytes(8), None),
    "negative shape": ({"x": entry(shape=(-1, -2))}, bytes(8), None),
    "shape as a number": ({"x": entry(shape=2)}, bytes(8), None),
    "shape as text": ({"x": entry(shape="2")}, bytes(8), None),
    "shape as an object": ({"x": entry(0, 4, shape={})}, bytes(4), None),
    "shape of nothing": ({"x": entry(0, 4, shape=None)}, bytes(4), None),
    "a thousand axes": ({"x": entry(0, 4, shape=(1,) * 1000)}, bytes(4), None),
    "three offsets": ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, bytes(8), None),
    "unknown dtype": ({"x": entry(dtype="F33")}, bytes(8), None),
    "dtype as a number": ({"x": entry(dtype=3)}, bytes(8), None),
    "dtype as a list": ({"x": entry(dtype=["F32"])}, bytes(8), None),
    "no dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8), None),
    "entry of text": ({"x": "F32"}, bytes(8), None),
    "entry of nothing": ({"x": None}, bytes(8), None),
    "one name twice": (f'{{"x": {json.dumps(entry())}, "x": {json.dumps(entry())}}}', bytes(8), None),
    "two keys twice": ('{"x": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}', bytes(8), None),
    "a name of a megabyte": ({"x" * 1_000_000: entry()}, bytes(8), None),
    "line break in a name": ({"x\n": entry()}, bytes(8), None),
    "escape sequence in a name": ({"\x1b[2Jx": entry()}, bytes(8), None),
    "8-bit escape sequence in a name": ({"\x9b2Jx": entry()}, bytes(8), None),
    "half a character in a name": ({"x\ud800": entry()}, bytes(8), None),
    "right to left in a name": ({"x\u202egnp": entry()}, bytes(8), None),
}


def lie(name: str) -> Spoil:
    header, data, length = LIES[name]

    def spoil(folder: Path) -> Path:
        if name == "UTF-16":
            return file(folder, header.encode("utf-16"), data, length)
        return file(folder, header, data, length)

    return spoil


def duplicates(folder: Path) -> Path:
    """A long header whose last name is there twice: finding it must not take quadratic time."""
    names = [f'"x{i}": 0' for i in range(300_000)]
    return file(folder, "{" + ", ".join([*names, names[-1]]) + "}")


HEADERS: dict[str, Spoil] = {name: lie(name) for name in LIES} | {"twice at the end of many": duplicates}


# ── indexes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def index(weight_map: Any, secret: bool = False) -> Spoil:
    """The good model's file with an index beside it that names others; `secret` lies outside of the folder."""

    def spoil(folder: Path) -> Path:
        if secret:
            (folder.parent / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        return make.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})

    return spoil


def shard_link(folder: Path) -> Path:
    """A shard that is a link to itself."""
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    return make.write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "loop.safetensors"}})


INDEXES: dict[str, Spoil] = {
    "parent": index({"x": "../secret.safetensors"}, secret=True),
    "parent by detour": index({"x": "sub/../../secret.safetensors"}, secret=True),
    "absolute": index({"x": "/etc/passwd"}),
    "device": index({"x": "/dev/zero"}),
    "backslash": index({"x": "..\\secret.safetensors"}, secret=True),
    "itself": index({"x": "."}),
    "nothing": index({"x": ""}),
    "NUL": index({"x": "model\0.safetensors"}),
    "escape sequence": index({"x": "\x1b[2J.safetensors"}),
    "half a character": index({"x": "\ud800.safetensors"}),
    "missing shard": index({"x": "model.safetensors", "y": "model-00002-of-00002.safetensors"}),
    "tensor that is nowhere": index({"model.norm.weight": "model.safetensors", "ghost.weight": "model.safetensors"}),
    "link to itself": shard_link,
    "number": index({"x": 3}),
    "list": index(["model.safetensors"]),
    "empty": index({}),
    "null": index(None),
}


# ── pickles ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

SENTINEL = "executed"


class Payload:
    """Makes a file when it is unpickled by a loader that trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.folder / SENTINEL}",)


def pickled(write: Callable[[Path, Path], None]) -> Spoil:
    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        write(path, folder)
        return path

    return spoil


def tar(path: Path, folder: Path) -> None:
    """The format before PyTorch 0.1.10, whose loader unpickles with no questions asked."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            raw = pickle.dumps(Payload(folder))
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def bomb(path: Path, folder: Path) -> None:
    """A small archive whose pickle is 20 MB of nothing, which would take a GB in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(5):
                member.write(b"N" * (4 << 20))
        archive.writestr("archive/version", "3\n")


def itself(path: Path, folder: Path) -> None:
    """A state dict in a state dict, without end."""
    made: dict[str, Any] = {"x": 1}
    made["state_dict"] = made
    torch.save(made, path)


def claimed(path: Path, folder: Path) -> None:
    """A file of torch.save whose tensor is of a terabyte, by strides over a few bytes."""
    torch.save({"x": torch.ones(1).expand(1 << 38)}, path)


def save(build: Callable[[Path], Any], **options: Any) -> Spoil:
    return pickled(lambda path, folder: torch.save(build(folder), path, **options))


PICKLES: dict[str, Spoil] = {
    "payload": save(lambda folder: {"x": torch.ones(2), "y": Payload(folder)}),
    "payload as a name": save(lambda folder: {Payload(folder): torch.ones(2)}),
    "payload nested": save(lambda folder: {"state_dict": {"x": Payload(folder)}}),
    "payload in the legacy format": save(lambda folder: {"y": Payload(folder)}, _use_new_zipfile_serialization=False),
    "bare pickle": pickled(lambda path, folder: path.write_bytes(pickle.dumps(Payload(folder))) and None),
    "tar": pickled(tar),
    "zip bomb": pickled(bomb),
    "itself": pickled(itself),
    "a terabyte of strides": pickled(claimed),
    "whole module": save(lambda folder: torch.nn.Linear(2, 2)),
    "list": save(lambda folder: [torch.ones(2)]),
    "nothing": save(lambda folder: {}),
    "numbers as names": save(lambda folder: {1: torch.ones(2)}),
    "not a pickle": pickled(lambda path, folder: path.write_bytes(b"PK\x03\x04 not a zip either") and None),
    "empty": pickled(lambda path, folder: path.write_bytes(b"") and None),
    "quantised": save(lambda folder: {"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
    "sparse": save(lambda folder: {"x": torch.ones(2, 2).to_sparse()}),
    "on no device": save(lambda folder: {"x": torch.ones(2, device="meta")}),
    "escape sequence in a name": save(lambda folder: {"\x1b[2Jx": torch.ones(2)}),
}


# ── configs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def config(text: bytes | str) -> Spoil:
    def spoil(folder: Path) -> Path:
        path = folder / "config.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return spoil


CONFIGS: dict[str, Spoil] = {
    "list": config("[1]"),
    "no JSON": config("{'a': 1}"),
    "nothing": config(""),
    "no UTF-8": config(b'{"a": "\xff"}'),
    "deep": config('{"a":' * 100_000),
    "huge": config(b'{"a": "' + b"x" * 65_000_000 + b'"}'),
    "half a character": config('{"a": "\\ud800"}'),
    "digits": config('{"a": ' + "9" * 10_000 + "}"),
}

ALL = {
    f"{kind}: {name}": spoil
    for kind, programs in (("header", HEADERS), ("index", INDEXES), ("pickle", PICKLES), ("config", CONFIGS))
    for name, spoil in programs.items()
}
