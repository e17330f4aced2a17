"""The small frozen records that every floor shares: dtype codes, tensor specs, model references."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from plait.errors import ModelError


class DType(NamedTuple):
    """One element type: its name in recipes and configs, its size in bits, whether it holds real numbers."""

    name: str
    bits: int
    floating: bool


#: safetensors code -> element type
DTYPES = {
    "F64": DType("float64", 64, True),
    "F32": DType("float32", 32, True),
    "F16": DType("float16", 16, True),
    "BF16": DType("bfloat16", 16, True),
    "F8_E4M3": DType("float8_e4m3fn", 8, True),
    "F8_E5M2": DType("float8_e5m2", 8, True),
    "F8_E8M0": DType("float8_e8m0fnu", 8, True),
    "F4": DType("float4_e2m1fn_x2", 4, True),
    "I64": DType("int64", 64, False),
    "I32": DType("int32", 32, False),
    "I16": DType("int16", 16, False),
    "I8": DType("int8", 8, False),
    "U64": DType("uint64", 64, False),
    "U32": DType("uint32", 32, False),
    "U16": DType("uint16", 16, False),
    "U8": DType("uint8", 8, False),
    "BOOL": DType("bool", 8, False),
    "C64": DType("complex64", 64, False),
}
#: the dtypes that weights are merged from and written in
MERGEABLE = ("F64", "F32", "F16", "BF16")
#: name in recipes and configs -> safetensors code
CODES = {dtype.name: code for code, dtype in DTYPES.items()}


def promoted(codes: Collection[str]) -> str:
    """The dtype code of a result of inputs with these codes: their own, or the smallest that holds them all."""
    if len(codes) == 1:
        return next(iter(codes))
    return "F64" if "F64" in codes else "F32"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its bytes: safetensors dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return (self.numel * DTYPES[self.dtype].bits + 7) // 8

    @property
    def floating(self) -> bool:
        return DTYPES[self.dtype].floating

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the tensor seen as a matrix: the last axis is the columns; a vector is one column."""
        if len(self.shape) < 2:
            return self.numel, 1
        return math.prod(self.shape[:-1]), self.shape[-1]

    def __str__(self) -> str:
        return f"{DTYPES[self.dtype].name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model: `PATH[@REVISION][+ADAPTER[@REVISION]]`, a local path or a Hub id.

    Two references are the same input when their fields are equal; `models/x`, `./models/x` and `models/x/` are equal.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    architecture: str | None = None  # `override_architecture`: replaces `architectures` of the model's config
    recipe: str | None = field(default=None, repr=False)  # the text of a recipe that stands in the model's place
    tree: Any = field(default=None, compare=False, repr=False)  # that recipe as it was read, with its places

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse the string form; raises `ModelError` for a form that cannot be meant."""
        model, *adapters = text.split("+")
        if len(adapters) > 1:
            raise ModelError(
                f"the model reference {text!r} has more than one '+'",
                wanted="PATH[@REVISION][+ADAPTER[@REVISION]]",
                found=f"{len(adapters)} adapters",
                do="use one adapter; for a path that contains '+': {model: {path: …}, lora: {path: …}}",
            )
        path, revision = _at(model, text)
        adapter, adapter_revision = _at(adapters[0], text) if adapters else (None, None)
        return cls(normal(path), revision, adapter and normal(adapter), adapter_revision)

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.adapter:
            text += f"+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")
        return text


def _at(part: str, text: str) -> tuple[str, str | None]:
    path, *revisions = part.split("@")
    if len(revisions) > 1 or not path.strip() or any(not r.strip() for r in revisions):
        raise ModelError(
            f"the model reference {text!r} cannot be read",
            wanted="PATH[@REVISION][+ADAPTER[@REVISION]]",
            found="more than one '@'" if len(revisions) > 1 else "an empty part",
            do="use the mapping form {model: {path: …, revision: …}} for a path that contains '@'",
        )
    return path.strip(), (revisions[0].strip() if revisions else None)


def normal(path: str) -> str:
    """One spelling for each path: no `./` in front, no `/` at the end, forward slashes (also for `C:\\models\\x`)."""
    path = path.strip()
    if "\\" in path:
        path = path.replace("\\", "/")
    path = re.sub(r"(?<!:)/{2,}", "/", path)
    path = re.sub(r"^(\./)+(?=\S)", "", path)
    return re.sub(r"[\s/]+$", "", path) or "/"


def layer_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts `layers.2` before `layers.10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression that a stranger wrote, for names that a stranger wrote; raises `re.error`.

    Python's engine takes exponential time for some patterns. Refused are repeated groups, more than three of `*`, `+` and `{}`,
    and more than twelve of `?` and `|`.
    """
    bare = re.sub(r"\\.", "_", pattern)
    if (
        re.search(r"\)[*+{]", bare)
        or len(re.findall("[*+{]", bare)) > 3
        or len(re.findall(r"\||\?(?![:=!<P])", bare)) > 12
    ):
        raise re.error("too much in it is repeated or optional: names could take for ever")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what later versions may read otherwise
        return re.compile(pattern)


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Bytes of `5B`, `5GB`, `1.5G`, `500MB`, `2GiB`, `1000`: K, M, B/G, T are powers of 1000, KiB, MiB, … of 1024.

    `B` alone after a number is a billion, as recipes have it (`--out-shard-size 1B`). Raises ValueError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)(B?)\s*", text.upper())
    if not match:
        raise ValueError(text)
    number, unit, binary, b = match.groups()
    if not unit and b:
        unit = "B"
    scale = _UNITS[unit]
    if binary:
        scale = 1024 ** ("KMGT".index(unit) + 1) if unit else 1
    size = int(float(number) * scale)
    if size <= 0:
        raise ValueError(text)
    return size
