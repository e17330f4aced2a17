"""Opening and reading a GGUF file: the `gguf` package tells where its tensors lie, and dequantises the rows that are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.checkpoint import Rows
from plait.checkpoint.dtypes import torch_dtype
from plait.checkpoint.files import Files
from plait.checkpoint.gguf.config import config, llama3
from plait.checkpoint.gguf.names import FAMILIES, SETTINGS, Part, parts
from plait.errors import ModelError
from plait.lazy import Tensor, np, torch
from plait.types import DTYPES, TensorSpec

BLOCK = 1 << 18  # entries that are dequantised at once
_ORIGINAL = "use the original checkpoint, in safetensors"
_AS_STORED = ("F32", "F16", "BF16")
_BROKEN = (ValueError, LookupError, OverflowError, TypeError, OSError, MemoryError, AttributeError, RuntimeWarning)


class GgufFile:
    """One model in GGUF, in one file or in the files that it was split into, as a `Checkpoint`.

    float32, float16 and bfloat16 tensors have their own dtype, others are float32. `home` is bfloat16 if anything is
    quantised, otherwise the dtype of the embedding. What is read is dequantised row by row.
    """

    def __init__(self, files: list[Path], stated: Mapping[str, Any]) -> None:
        self.files, self._bytes = tuple(files), Files()
        try:
            self._open(files, stated)
        except _BROKEN as error:
            raise ModelError(
                f"{files[0]} is not a GGUF file that can be read",
                wanted="a whole GGUF file, version 2 or 3",
                found=(str(error) or type(error).__name__).splitlines()[0][:120],
                do="download or copy the file again",
            ) from error

    def _open(self, files: list[Path], stated: Mapping[str, Any]) -> None:
        import gguf

        readers = [gguf.GGUFReader(str(path)) for path in files]
        fields = readers[0].fields

        def field(key: str) -> Any:
            return fields[key].contents() if key in fields else None

        called = str(field("general.architecture"))
        family = FAMILIES.get("mixtral" if called == "llama" and field("llama.expert_count") else called)
        if family is None:
            raise ModelError(
                f"{files[0]} holds a model of an architecture that plait does not know in GGUF",
                wanted=", ".join(FAMILIES),
                found=ascii(called)[:60],
                do=_ORIGINAL,
            )
        heads = field(f"{called}.attention.head_count")
        keys = field(f"{called}.attention.head_count_kv") or heads
        self._stored: dict[str, tuple[Any, Any, tuple[int, ...]]] = {}  # name -> type, mapped bytes, shape
        self._maps = [
            (reader.data.ctypes.data, reader.data.nbytes, path) for reader, path in zip(readers, files, strict=True)
        ]
        self._parts: dict[str, Part] = {}
        strange = []
        for tensor in (tensor for reader in readers for tensor in reader.tensors):
            shape = tuple(int(n) for n in reversed(tensor.shape))
            self._stored[tensor.name] = (tensor.tensor_type, tensor.data, shape)
            counts = {"attn_q": heads, "attn_k": keys} if isinstance(heads, int) and isinstance(keys, int) else {}
            found = dict(parts(family, tensor.name, shape, counts))
            if not found and tensor.name not in SETTINGS:
                strange.append(tensor.name)
            self._parts |= found
        if strange or not self._parts:
            raise ModelError(
                f"{files[0]} has tensors that plait does not know in {called}",
                wanted="the tensors of " + family.kind,
                found=", ".join(map(ascii, strange[:4])) or "none at all",
                do=_ORIGINAL,
            )
        for part in self._parts.values():
            kind, _, shape = self._stored[part.stored]
            if kind.name not in _AS_STORED and kind not in gguf.quants._type_traits:
                raise ModelError(
                    f"{files[0]} has {part.stored} in {kind.name}, which cannot be read",
                    wanted="Q8_0, Q4_K, …",
                    found=kind.name,
                    do=_ORIGINAL,
                )
            if part.heads and (part.heads < 0 or shape[0] % (2 * part.heads)):
                raise ModelError(
                    f"{files[0]} has a {part.stored} that does not fit",
                    wanted=f"rows of {part.heads} heads",
                    found=str(shape),
                    do=_ORIGINAL,
                )
        quantised = [k.name for k, _, s in self._stored.values() if len(s) > 1 and k.name not in _AS_STORED]
        kinds = ", ".join(sorted(set(quantised)))
        told = f"{len(quantised)} weights are quantised (GGUF: {kinds}), and dequantised as they are read"
        self.notes = (told,) if quantised else ()
        home = "BF16" if quantised else self._stored["token_embd.weight"][0].name
        self.home = dict.fromkeys(self._parts, home)
        self.specs: Mapping[str, TensorSpec] = {name: self._spec(part) for name, part in self._parts.items()}
        self.stored = {name: self._nbytes(part) for name, part in self._parts.items()}
        vocabulary = self._stored["token_embd.weight"][2][0]
        made = config(family, called, field, self._stored, vocabulary, self._rope(field, called))
        self.config: Mapping[str, Any] = {**made, "dtype": DTYPES[home].name, **stated}

    def _spec(self, part: Part) -> TensorSpec:
        kind = self._stored[part.stored][0].name
        return TensorSpec(kind if kind in _AS_STORED and not part.lowered else "F32", part.shape)

    def _nbytes(self, part: Part) -> int:
        _, data, shape = self._stored[part.stored]
        return int(data.nbytes) * TensorSpec("F32", part.shape).numel // max(1, TensorSpec("F32", shape).numel)

    def _rope(self, field: Any, called: str) -> dict[str, Any]:
        """What tensors tell of the positions."""
        long, short = (self._settings(f"rope_factors_{kind}.weight") for kind in ("long", "short"))
        if long and short:
            scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
            return {"rope_scaling": scaling, "original_max_position_embeddings": None}
        factors = self._settings("rope_freqs.weight")
        if not factors:
            return {}
        size = field(f"{called}.rope.dimension_count") or 2 * len(factors)
        found = llama3(factors, float(field(f"{called}.rope.freq_base") or 10000.0), int(size))
        if found is None:
            raise ModelError(
                f"{self.files[0]} turns its positions in a way that plait does not know",
                wanted="no rope_freqs, or those of Llama 3.1",
                found=f"divisors from {min(factors):g} to {max(factors):g}",
                do=_ORIGINAL,
            )
        return found

    def _read(self, mapped: Any) -> Any:
        """The bytes of a stretch that is mapped, read from the file: one that became shorter is told, and does not kill."""
        at = mapped.ctypes.data
        start, _, path = next(each for each in self._maps if each[0] <= at < each[0] + each[1])
        out = np.empty(mapped.shape, mapped.dtype)
        self._bytes.fill(path, at - start, memoryview(out.reshape(-1).view("uint8").data))
        return out

    def _settings(self, name: str) -> list[float]:
        if name not in self._stored:
            return []
        kind, data, _ = self._stored[name]
        return [float(x) for x in _numbers(kind, self._read(data).reshape(1, -1)).reshape(-1)]

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        spec, part = self.specs[name], self._parts[name]
        count, columns = spec.matrix
        start, stop = rows or (0, count)
        made = torch.empty((stop - start, columns), dtype=torch_dtype(spec.dtype))
        step = max(1, BLOCK // max(1, columns))
        for row in range(start, stop, step):
            last = min(row + step, stop)
            made[row - start : last - start] = self._rows(part, row, last).reshape(last - row, columns)
        return made if rows else made.reshape(spec.shape)

    def _rows(self, part: Part, start: int, stop: int) -> Tensor:
        kind, data, _ = self._stored[part.stored]
        if len(part.shape) < 2 or part.shape[0] == 1:  # in one piece, whatever its blocks
            x = _numbers(kind, self._read(data).reshape(1, -1)).reshape(
                -1, 1 if len(part.shape) < 2 else part.shape[-1]
            )
            low, high, wanted = 0, len(x), torch.arange(start, stop)
            if part.heads:
                wanted = _order(wanted, len(x) // part.heads)
        elif part.heads:
            size = part.shape[0] // part.heads
            low, high = start // size * size, -(-stop // size) * size
            wanted = _order(torch.arange(start, stop), size) - low
        else:
            low, high, wanted = start, stop, torch.arange(stop - start)
        if len(part.shape) >= 2 and part.shape[0] != 1:
            flat = data.reshape(-1, data.shape[-1])
            x = _numbers(kind, self._read(flat[part.first + low : part.first + high]))
        x = x[wanted]
        return x - 1 if part.lowered else x


def _order(rows: Tensor, size: int) -> Tensor:
    """Where llama.cpp keeps these rows of q or k: of each head, the two halves row by row in turn."""
    head, within = rows // size, rows % size
    return head * size + within % (size // 2) * 2 + within // (size // 2)


def _numbers(kind: Any, data: Any) -> Tensor:
    """Stored bytes as numbers: in their dtype if that is a float's, else dequantised to float32."""
    import gguf

    if kind.name == "BF16":
        return torch.from_numpy(data.view("uint8")).view(torch.bfloat16)
    if kind.name in _AS_STORED:
        return torch.from_numpy(data)
    return torch.from_numpy(gguf.quants.dequantize(data, kind))


def open_gguf(path: Path, stated: Mapping[str, Any]) -> GgufFile:
    """The model in a GGUF file, from its metadata alone; `stated` are entries of the config that win over the file's."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{path} is a GGUF file", wanted="the package gguf, which reads it", do='pip install "plait[gguf]"'
        ) from error
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None:
        return GgufFile([path], stated)
    files = [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf") for i in range(1, int(match[3]) + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{path} lacks files",
            wanted=f"{len(files)} files",
            found="no " + ", no ".join(missing[:3]),
            do="download the missing files",
        )
    return GgufFile(files, stated)
