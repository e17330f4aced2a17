"""Writing a GGUF file: its head first, then each tensor in its place, in pieces."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plait.errors import MergeError, OutputError, reason
from plait.export.gguf import Export
from plait.export.layout import Stored, blocks
from plait.lazy import torch
from plait.merged import Merge
from plait.output.inputs import fetch
from plait.run import default_threads
from plait.writer import fsync, fsync_folder

PIECE = 1 << 21  # entries that are worked on at once
_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32, "TQ1_0": 36}
_TYPES |= {"TQ2_0": 37, "MXFP4": 38}  # general.file_type


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    modelfile: Path
    type: str
    tensors: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...]


def write(ready: Export, threads: int | None = None, progress: Callable[[int], None] | None = None) -> Exported:
    """Write the GGUF file and the Modelfile; what was begun is removed when it fails.

    `progress` is told the bytes done since its last call.
    """
    begun = time.monotonic()
    partial = {path: path.with_name(path.name + ".partial") for path in (ready.modelfile, ready.out)}
    made = [path for path in (ready.out.parent, *ready.out.parent.parents) if not path.exists()]
    try:
        ready.out.parent.mkdir(parents=True, exist_ok=True)
        _fill(ready, partial[ready.out], threads or default_threads(), progress or (lambda done: None))
        partial[ready.modelfile].write_text(ready.ollama, "utf-8")
        for path, begun_file in partial.items():
            os.replace(begun_file, path)
        fsync_folder(ready.out.parent)
    except OSError as error:
        raise OutputError(
            f"writing {ready.out} failed",
            wanted=f"{ready.nbytes / 1e9:.2f} GB on a disk that takes them",
            found=reason(error),
            do="free some space, or choose another OUT",
        ) from error
    finally:
        for begun_file in partial.values():
            with suppress(OSError):
                begun_file.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # not empty: the file is in it
                folder.rmdir()
    seconds = time.monotonic() - begun
    count = len(ready.tensors) + len(ready.settings)
    return Exported(ready.out, ready.modelfile, ready.type, count, ready.out.stat().st_size, seconds, ready.notes)


def _fill(ready: Export, path: Path, threads: int, progress: Callable[[int], None]) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, ready.architecture)
    for key, value in _general(ready).items():
        _add(writer, key, value)
    for key, value in ready.keys.items():
        _add(writer, f"{ready.architecture}.{key}", value)
    ready.tokens.add_to(writer)
    for name, values in ready.settings.items():
        writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), 4 * len(values))
    for one in ready.tensors:
        kind = gguf.GGMLQuantizationType[one.type]
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), one.nbytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout or []
        at = writer.ggml_pad(file.tell(), writer.data_alignment)
        places = {}
        for name, nbytes in [
            *((name, 4 * len(values)) for name, values in ready.settings.items()),
            *((one.name, one.nbytes) for one in ready.tensors),
        ]:
            places[name] = at
            at += writer.ggml_pad(nbytes, writer.data_alignment)
        os.ftruncate(file.fileno(), at)
        for name, values in ready.settings.items():
            os.pwrite(file.fileno(), np.asarray(values, "<f4").tobytes(), places[name])
        merge = Merge(fetch(ready.plan))
        largest_first = sorted(ready.tensors, key=lambda one: -one.nbytes)
        _in_parallel(
            [partial(_tensor, merge, one, file.fileno(), places[one.name], progress) for one in largest_first],
            threads,
        )
    finally:
        writer.close()
    fsync(path)


def _general(ready: Export) -> dict[str, Any]:
    import gguf

    counts = [one.nbytes // blocks()[one.type][1] * blocks()[one.type][0] for one in ready.tensors]
    experts = sum(n for n, one in zip(counts, ready.tensors, strict=True) if "_exps" in one.name)
    count = int(ready.keys.get("expert_count", 0))
    label = gguf.size_label(sum(counts), sum(counts) - experts, experts // count if count else 0, count)
    made = {"type": "model", "name": ready.name, "size_label": label, "file_type": _TYPES[ready.type]}
    if ready.type not in ("F32", "F16", "BF16"):
        made["quantization_version"] = gguf.GGML_QUANT_VERSION
    return {f"general.{key}": value for key, value in made.items()} | {"plait.recipe": ready.plan.recipe.text}


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _tensor(
    merge: Merge, one: Stored, file: int, at: int, progress: Callable[[int], None], stop: threading.Event
) -> None:
    """Put a tensor into its place in the file."""
    for data in _pieces(merge, one):
        if stop.is_set():
            return
        view = memoryview(data).cast("B")
        while view:
            done = os.pwrite(file, view, at)
            view, at = view[done:], at + done
            progress(done)


def _pieces(merge: Merge, one: Stored) -> Iterator[bytes]:
    """The bytes of a tensor, a piece of its rows after the other."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[one.type]
    for source in one.sources:
        rows, columns = merge.specs[source].matrix
        size = rows // one.heads if one.heads else 1
        step = max(1, PIECE // max(1, columns * size)) * size
        for start in range(0, rows, step):
            read = merge.read(source, (start, min(start + step, rows)))
            same = merge.specs[source].dtype == one.type == "BF16" and not one.raised  # numpy knows no bfloat16
            x = (read.view(torch.int16) if same else read.float()).numpy()
            if one.heads:  # of each head, the two halves row by row in turn
                x = x.reshape(-1, 2, size // 2, columns).swapaxes(1, 2).reshape(x.shape)
            if one.raised:
                x = x + np.float32(1)
            if one.type == "F16" and np.abs(x).max(initial=0) > 65504 and np.isfinite(x).all():
                raise MergeError(
                    f"{source} does not fit into float16",
                    wanted="numbers up to 65504",
                    found=f"{np.abs(x).max():.6g}",
                    do="pass --type BF16 or F32",
                )
            if len(one.shape) < 2:
                x = x.reshape(1, -1)
            yield np.ascontiguousarray(x if same else gguf.quants.quantize(x, kind)).tobytes()


def _in_parallel(tasks: list[Callable[[threading.Event], None]], threads: int) -> None:
    """Run all; at the first that fails, or when the user interrupts, the others stop at their next piece."""
    stop = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(task, stop) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
