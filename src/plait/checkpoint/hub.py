"""The Hub: which commit a reference means, what that commit holds, and its files in huggingface_hub's cache.

What fails for a while (the network, a busy or broken server) is tried again, a few times; then, and for what will not
change, a `ModelError` says which it was. The token goes into request headers and nowhere else.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from plait.errors import ModelError
from plait.types import ModelRef

#: what a merge may need besides the weights
SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "LICENSE*", "README.md")
#: where such files may lie below the top
FOLDERS = ("additional_chat_templates/*.jinja", "[0-9]*_*/config.json")
#: of these, what planning needs; and anything that is no larger than `SMALL` bytes
PLANNED = ("config.json", "*.index.json", "tokenizer_config.json", "chat_template.*", "adapter_config.json")
SMALL = 100_000
#: org/name or name, neither beginning with a dot, as `../name` does
HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")

TRIES = 5  # of one request
DOWNLOADS = 2  # of a file; huggingface_hub repeats what it asks, too
PAUSE = 0.5  # seconds before the second try; doubled before each further one
LONGEST_PAUSE = 60.0  # seconds, also where the Hub asks for more
PASSING = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Published:
    """A file of a commit: bytes, git's hash of it, and for what git does not hold itself its SHA-256."""

    size: int
    blob: str | None
    sha256: str | None


@dataclass(frozen=True)
class Repo:
    """A model repository at one commit: its folder in the cache, which may lack files, and what the commit holds.

    `files` is empty when the Hub was not asked: offline, or out of reach with the model in the cache.
    """

    ref: ModelRef
    revision: str
    folder: Path
    files: Mapping[str, Published]
    cache: Path | None

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Of these files of the commit, the ones that are not in the cache."""
        return [name for name in names if name in self.files and not (self.folder / name).is_file()]

    def side_files(self, planned: bool = False) -> list[str]:
        """The files beside the weights; `planned`: only the small ones that planning needs."""
        return [
            name
            for name, file in self.files.items()
            if ("/" not in name or any(fnmatch(name, pattern) for pattern in FOLDERS))
            and any(fnmatch(name, pattern) for pattern in SIDE_FILES)
            and (not planned or file.size <= SMALL or any(fnmatch(name, pattern) for pattern in PLANNED))
        ]


def look(ref: ModelRef, cache: Path | None = None) -> Repo:
    """Pin the commit that `ref` means now, and list its files; from the cache when the Hub cannot be reached.

    Raises `ModelError`: missing, private, gated, no such revision, token refused, out of reach, not a Hub id.
    """
    if not HUB_ID.fullmatch(ref.path):
        raise ModelError(
            f"there is no {ref.path}",
            wanted="a folder on this disk, or a Hub id such as org/name",
            found="neither",
            do="check the path; relative paths start at the current directory or beside the recipe",
        )
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not reachable():
        return _cached(ref, cache, OfflineModeIsEnabled())
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = persist(
            lambda: HfApi().model_info(ref.path, revision=ref.revision, timeout=timeout, files_metadata=True)
        )
    except network_errors() as error:
        if passing(error):
            return _cached(ref, cache, error)
        raise cannot_get(ref, error) from error
    except (ValueError, LookupError, TypeError) as error:  # an id that cannot be, or an answer that is not the Hub's
        raise cannot_get(ref, error) from error
    files = {
        file.rfilename: Published(file.size or 0, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }
    folder = _storage(ref.path, cache) / "snapshots" / str(info.sha)
    return Repo(ref, str(info.sha), folder, files, cache)


def fetch(repo: Repo, names: Collection[str]) -> None:
    """Get files of the commit into the cache, and compare each with the hash that the Hub has of it; `ModelError` otherwise."""
    missing = repo.lacks(names)
    if not missing:
        return
    # the first by its branch or tag: the cache then knows, without the Hub, which commit that was
    first = next((name for name in missing if name == "config.json"), missing[0])
    _get(repo, first, repo.ref.revision)
    with ThreadPoolExecutor(8, "plait-fetch") as pool:
        list(pool.map(lambda name: _get(repo, name, repo.revision), missing))


def _get(repo: Repo, name: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_download

    def get() -> Path:
        return Path(hf_hub_download(repo.ref.path, name, revision=revision, cache_dir=repo.cache))

    fresh = not (repo.folder / name).is_file()
    try:
        path = persist(get, DOWNLOADS)
        if fresh and path.parent == repo.folder and not whole(path, repo.files[name]):
            _forget(path)
            path = persist(get, DOWNLOADS)
            if not whole(path, repo.files[name]):
                _forget(path)
                raise ModelError(
                    f"{name} of {repo.ref} arrived with other bytes than the Hub lists",
                    wanted=f"SHA-256 {repo.files[name].sha256 or repo.files[name].blob}",
                    found="another hash, twice",
                    do="try again later; if it stays, tell the owner of the model",
                )
    except network_errors() as error:
        raise cannot_get(repo.ref, error) from error


def whole(path: Path, file: Published) -> bool:
    """Whether a file has the hash that the Hub lists for it."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == (file.sha256 or file.blob) or not (file.sha256 or file.blob)


def _forget(path: Path) -> None:
    """Take a file out of the cache: the link of this commit and the bytes that it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _storage(name: str, cache: Path | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _cached(ref: ModelRef, cache: Path | None, cause: Exception) -> Repo:
    """The commit that the cache has for `ref`; what is wrong with the Hub if it has none."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            ref.path, revision=ref.revision, cache_dir=cache, local_files_only=True, allow_patterns=["config.json"]
        )
    except (OSError, ValueError) as error:
        raise cannot_get(ref, cause) from error
    return Repo(ref, Path(found).name, Path(found), {}, cache)


def reachable() -> bool:
    """Whether the Hub's host answers, asked shortly: a mistyped local path should not cost half a minute."""
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


def silence() -> None:
    """Let huggingface_hub show no progress, for the rest of this process."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()


def network_errors() -> tuple[type[Exception], ...]:
    """What requests of huggingface_hub may raise; its HTTP library has changed from version to version."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return (library.HTTPError, OSError)


def status(error: BaseException) -> int | None:
    """The HTTP status of an answer that was an error."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub.errors import EntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError | OfflineModeIsEnabled):
        return False
    if isinstance(error, EntryNotFoundError):  # huggingface_hub's word for a file that it could not ask for
        return error.__cause__ is not None and isinstance(error.__cause__, Exception) and passing(error.__cause__)
    code = status(error)
    return code in PASSING if code else isinstance(error, network_errors())


def persist(call: Callable[[], T], tries: int = TRIES) -> T:
    """What `call` returns; where it fails for a passing reason, it is called again, `tries` times in all."""
    for attempt in range(tries):
        try:
            return call()
        except network_errors() as error:
            if attempt == tries - 1 or not passing(error):
                raise
            time.sleep(_pause(error, attempt))
    raise AssertionError


def _pause(error: Exception, attempt: int) -> float:
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(LONGEST_PAUSE, float(asked) if asked.isdigit() else PAUSE * 2**attempt)


def cannot_get(ref: ModelRef, error: BaseException) -> ModelError:
    """What went wrong with a model on the Hub, in words."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        found = "neither: the Hub cannot be reached, or HF_HUB_OFFLINE is set, and the model is not in the cache"
        do = "check the path and the network"
    else:
        found, do = said(ref, error)
    return ModelError(f"{ref} cannot be had", wanted="a folder on this disk, or a model on the Hub", found=found, do=do)


def said(ref: ModelRef, error: BaseException) -> tuple[str, str]:
    """What the Hub's answer means, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    known: dict[type[Any], tuple[str, str]] = {
        GatedRepoError: ("a gated model", f"ask for access on its page, then run: hf auth login ({ref.path})"),
        RevisionNotFoundError: (f"no revision {ref.revision!r}", "check the part after '@'"),
        RepositoryNotFoundError: (
            "no such model, or a private one",
            "check the spelling; if it is private: hf auth login",
        ),
    }
    for kind, words in known.items():
        if isinstance(error, kind):
            return words
    code = status(error)
    if code == 401:
        return "the Hub does not accept the token (401)", "run hf auth login, or mend HF_TOKEN"
    if code == 403:
        return "the Hub refuses access (403)", "check on its page what your account and token may do"
    if code == 404:
        return "the Hub does not have it (404)", "check the spelling; if it is private: hf auth login"
    if code == 429:
        return (
            "too many requests: the Hub asks to wait (429)",
            "try again in some minutes; hf auth login raises the limit",
        )
    if code and code >= 500:
        return f"the Hub has trouble ({code}), again and again", "try again later; https://status.huggingface.co"
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return re.sub(r"\?\S+", "", " ".join(lines[:3]))[:200], "check the network, and try again later"
