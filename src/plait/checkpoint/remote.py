"""Weights on the Hub as a checkpoint: headers by one small range request a file, tensors by range requests when they are read.

A file that has come into the cache meanwhile is read there. Memory: `KEPT` blocks of `BLOCK` bytes a model.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from plait.checkpoint import Rows
from plait.checkpoint.directory import SafetensorsFiles, joined
from plait.checkpoint.files import read_extent
from plait.checkpoint.header import Extent, header_of
from plait.checkpoint.hub import Repo, cannot_get, fetch, network_errors, persist
from plait.errors import ModelError
from plait.lazy import torch

BLOCK = 4 << 20  # bytes of a range request, and what is read ahead
KEPT = 16  # blocks that stay in memory
REQUESTS = 8  # at once, for one model
FIRST = 32 << 10  # bytes asked for a header of unknown length


class RemoteFile:
    """A file of a commit, read by byte ranges. The commit is in the address, so its bytes cannot change unnoticed."""

    def __init__(self, repo: Repo, name: str) -> None:
        from huggingface_hub import hf_hub_url

        self.repo, self.name, self.published = repo, name, repo.files[name]
        self._address = hf_hub_url(repo.ref.path, name, revision=repo.revision)
        self._signed: str | None = None  # where the Hub sent us for the bytes; runs out after a while

    @property
    def label(self) -> Path:
        return Path(f"{self.repo.ref.path}@{self.repo.revision[:8]}") / self.name

    def read(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count); tried again where that may help, `ModelError` otherwise."""
        try:
            return persist(lambda: self._read(start, count))
        except network_errors() as error:
            raise cannot_get(self.repo.ref, error) from error

    def _read(self, start: int, count: int) -> bytes:
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        signed = self._signed
        with _answer(signed or self._address, start, count, with_token=signed is None) as response:
            code = response.status_code
            if signed and code in (400, 401, 403, 404, 410):
                self._signed = None
                raise ConnectionError("a signed address has run out")
            if code >= 400:
                response.read() if hasattr(response, "read") else response.content  # the message is in it
                hf_raise_for_status(response)
            self._check(response, start, count)
            data = bytearray()
            for chunk in response.iter_bytes() if hasattr(response, "iter_bytes") else response.iter_content(1 << 16):
                data += chunk
                if len(data) > count:
                    break
            if len(data) != count:
                raise ConnectionError(f"{len(data)} bytes of {self.name} arrived, not {count}")
            here, there = urlsplit(self._address), urlsplit(str(response.url))
            if (here.scheme, here.netloc) != (there.scheme, there.netloc):
                self._signed = str(response.url)
            return bytes(data)

    def _check(self, response: Any, start: int, count: int) -> None:
        """Refuse an answer that is not of these bytes of this file."""
        sizes = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        wanted = (start, start + count - 1, self.published.size)
        tags = [r.headers.get("X-Linked-Etag", "").strip('"') for r in (*response.history, response)]
        other = next((tag for tag in tags if tag and self.published.sha256 not in (None, tag)), None)
        if response.status_code != 206 or not sizes or tuple(map(int, sizes.groups())) != wanted or other:
            raise ModelError(
                f"{self.label} is not the file that the Hub lists",
                wanted=f"bytes {start} to {start + count - 1} of {self.published.size}",
                found=f"SHA-256 {other}" if other else sizes[0] if sizes else "an answer that is not a byte range",
                do="merge without --stream, or try again later",
            )

    def header(self, guess: int) -> dict[str, Extent]:
        """Every tensor with its place; `guess`: bytes to ask for first."""
        size = self.published.size
        had = self.read(0, min(size, guess)) if size else b""
        at = 0

        def take(count: int) -> bytes:
            nonlocal had, at
            if at + count > len(had) and at + count <= size:
                had += self.read(len(had), at + count - len(had))
            at += count
            return had[at - count : at]

        return header_of(self.label, size, take)


@contextmanager
def _answer(address: str, start: int, count: int, with_token: bool) -> Iterator[Any]:
    """The answer to a range request, its body not yet read; through huggingface_hub's session, whichever library that is."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    headers = {
        **build_hf_headers(token=None if with_token else False, library_name="plait"),
        "Range": f"bytes={start}-{start + count - 1}",
        "Accept-Encoding": "identity",
    }
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx; requests has a flag of that name
        with session.stream("GET", address, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response
    else:
        with session.get(address, headers=headers, timeout=timeout, stream=True) as response:
            yield response


class RemoteFiles:
    """Safetensors files of a commit as a `Checkpoint`; thread-safe. What is read is what travels, `BLOCK` by `BLOCK`."""

    def __init__(self, repo: Repo, names: list[str], config: Mapping[str, Any], index: Mapping[str, str]) -> None:
        """`index`: tensor -> file, where the model has one; tells how long the headers will be."""
        self.repo, self.names, self.config = repo, names, config
        self._files = {name: RemoteFile(repo, name) for name in repo.lacks(names)}
        self._local = {
            name: SafetensorsFiles([repo.folder / name], config) for name in names if name not in self._files
        }
        guesses = dict.fromkeys(self._files, 0)
        for tensor, file in index.items():
            if file in guesses:
                guesses[file] += len(tensor) + 96
        with ThreadPoolExecutor(REQUESTS, "plait-header") as pool:
            found = pool.map(
                lambda file: file.header(guesses[file.name] + 1024 if guesses[file.name] else FIRST),
                self._files.values(),
            )
            remote = dict(zip(self._files, found, strict=True))
        extents = [remote[name] if name in remote else self._local[name].extents for name in names]
        self._extents = joined(extents)
        self._shard = {tensor: name for name, part in zip(names, extents, strict=True) for tensor in part}
        self.specs = {tensor: extent.spec for tensor, extent in self._extents.items()}
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(REQUESTS, "plait-range")

    def shards(self, tensors: Iterable[str] | None = None) -> list[str]:
        """The files that hold these tensors, or all files, in order."""
        wanted = {self._shard[tensor] for tensor in tensors} if tensors is not None else set(self.names)
        return [name for name in self.names if name in wanted]

    def fetch(self, names: Collection[str]) -> None:
        """Get files into the cache, checked; from now on they are read there."""
        fetch(self.repo, names)
        for name in names:
            if name not in self._local:
                self._local[name] = SafetensorsFiles([self.repo.folder / name], self.config)

    @property
    def local(self) -> list[Path]:
        """The files that lie in the cache."""
        return [self.repo.folder / name for name in self.names if name in self._local]

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        shard = self._shard[name]
        if here := self._local.get(shard):
            return here.read(name, rows)
        extent = self._extents[name]
        return read_extent(
            extent.spec, rows, lambda begin, view: self._fill(name, self._files[shard], extent, begin, view)
        )

    def _fill(self, name: str, file: RemoteFile, extent: Extent, begin: int, view: memoryview) -> None:
        end = begin + len(view)
        for i in range(begin // BLOCK, -(-end // BLOCK)):
            block = self._block(name, file, extent, i)
            low, high = max(begin, i * BLOCK), min(end, (i + 1) * BLOCK)
            view[low - begin : high - begin] = block[low - i * BLOCK : high - i * BLOCK]

    def _block(self, name: str, file: RemoteFile, extent: Extent, i: int) -> bytes:
        """Block `i` of a tensor; the one after it is asked for meanwhile."""

        def ask(j: int) -> Future[bytes]:
            if (name, j) not in self._blocks:
                count = min(BLOCK, extent.spec.nbytes - j * BLOCK)
                self._blocks[name, j] = self._pool.submit(file.read, extent.offset + j * BLOCK, count)
            self._blocks.move_to_end((name, j))
            return self._blocks[name, j]

        with self._lock:
            future = ask(i)
            if (i + 1) * BLOCK < extent.spec.nbytes:
                ask(i + 1)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                self._blocks.pop((name, i), None)
            raise
