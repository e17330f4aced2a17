"""The header of a safetensors file, believed only after it has been checked.

A file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, data_offsets), then the
data, without gaps or overlaps. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import ModelError
from plait.types import DTYPES, TensorSpec

LONGEST = 100_000_000  # bytes of header, the format's own limit
NAME = 512  # characters of a tensor's name; real ones have up to 150


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one tensor lie: file, offset of the first byte, spec."""

    path: Path
    offset: int
    spec: TensorSpec


def read_header(path: Path) -> dict[str, Extent]:
    """Every tensor of a safetensors file with its place, in file order; raises `ModelError` for a file that lies."""
    try:
        with open(path, "rb") as file:
            return header_of(path, os.fstat(file.fileno()).st_size, file.read)
    except OSError as error:
        raise unreadable(path, error.strerror) from error


def unreadable(path: Path, why: str | None) -> ModelError:
    """What to raise for a file or folder that the system does not give us."""
    return ModelError(f"{path} cannot be read", found=str(why), do="check that it exists and may be read")


def header_of(path: Path, size: int, take: Callable[[int], bytes]) -> dict[str, Extent]:
    """As `read_header`, of `size` bytes that `take(count)` gives from the first one on; `path` is what to call them."""
    length = int.from_bytes(take(8), "little") if size >= 8 else -1
    if length < 2 or length > min(size - 8, LONGEST):
        raise _broken(
            path,
            f"a header of at most {max(size - 8, 0)} bytes",
            f"{size} bytes in all" if length < 0 else f"a header of {length} bytes in a file of {size}",
        )
    text = take(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "a JSON object with each name once", f"{error}") from error
    if not isinstance(header, dict):
        raise _broken(path, "a JSON object", f"a {type(header).__name__}")
    header.pop("__metadata__", None)

    extents = {}
    for name, entry in header.items():
        spec, begin, end = _entry(path, name, entry)
        if not 0 <= begin <= end or end - begin != spec.nbytes:
            raise _broken(path, f"{spec.nbytes} bytes for {name!r} ({spec})", f"offsets {begin} to {end}")
        extents[name] = (Extent(path, 8 + length + begin, spec), begin, end)

    at = 0
    for name, (_, begin, end) in sorted(extents.items(), key=lambda item: (item[1][1], item[1][2])):
        if begin != at:
            fault = "an overlap" if begin < at else "a gap"
            raise _broken(path, f"the bytes of {name!r} at {at}", f"{fault} at {begin}")
        at = end
    if 8 + length + at != size:
        more = 8 + length + at - size
        found = f"{more} bytes missing at the end" if more > 0 else f"{-more} bytes too many"
        raise _broken(path, f"{8 + length + at} bytes", found)
    return {name: extent for name, (extent, _, _) in sorted(extents.items(), key=lambda item: item[1][1])}


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, "dtype, shape and data_offsets", f"the entry of {name!r} as {str(entry)[:80]}") from error
    if not isinstance(code, str) or code not in DTYPES:
        raise _broken(path, f"a dtype out of {', '.join(DTYPES)}", f"{str(code)[:40]!r} for {name!r}")
    if not isinstance(shape, list) or len(shape) > 16 or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
        raise _broken(path, "sizes and offsets from 0 to 2^63", f"{str(numbers)[:80]} for {name!r}")
    if not name.isprintable() or len(name) > NAME:
        raise _broken(path, f"printable tensor names of at most {NAME} characters", f"{name[:80]!r}")
    return TensorSpec(code, tuple(shape)), begin, end


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        raise ValueError(f"{next(n for n, _ in pairs if n in seen or seen.add(n))!r} twice")  # type: ignore[func-returns-value]
    return table


def _broken(path: Path, wanted: str, found: str) -> ModelError:
    return ModelError(
        f"{path} is not a whole safetensors file",
        wanted=wanted,
        found=found,
        do="download or copy the file again",
    )
