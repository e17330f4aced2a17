"""What models answered before: one JSONL file for each pair of subject and task, a line an item.

The file's name is made of the fingerprints of both, so a changed model or task finds nothing. A line is added as soon as an
item is known, which is what lets a stopped evaluation go on. The folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from plait.errors import OutputError
from plait.evaluate.records import Measure, Sample

WHOLE = 64_000_000  # bytes of a file that is hashed in full


def folder(named: Path | None = None) -> Path:
    """Where answers are kept: as named, else `plait/eval` in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
    return named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait" / "eval"


def digest(*parts: object) -> str:
    """SHA-256 of JSON data, in hex."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """Hex digits that change with the file: SHA-256 of up to 64 MB; of larger ones size, time and samples."""
    stat = path.stat()
    if stat.st_size <= WHOLE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    from plait.output.hashes import fingerprint

    return digest(fingerprint(path), stat.st_mtime_ns)


class Kept:
    """The samples of one subject at one task."""

    def __init__(self, where: Path, subject: str, task: str) -> None:
        self.path = where / f"{subject[:24]}-{task[:24]}.jsonl"

    def read(self) -> dict[str, Sample]:
        """Key -> sample; lines that are cut or strange, as after a kill, are passed over."""
        try:
            text = self.path.read_text("utf-8", errors="replace")
        except OSError:
            return {}
        return {sample.key: sample for line in text.splitlines() if (sample := _sample(line))}

    @contextmanager
    def writer(self) -> Iterator[TextIO]:
        """The file, opened to add lines; raises `OutputError`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", buffering=1) as file:
                if file.tell():
                    file.write("\n")  # a line that was cut ends here
                yield file
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written", found=error.strerror or str(error), do="name another --cache"
            ) from error


def line(sample: Sample) -> str:
    """A sample as one line."""
    data = {"key": sample.key, "measures": sample.measures}
    data |= {"asked": sample.asked, "wanted": sample.wanted, "said": sample.said}
    return json.dumps(data, ensure_ascii=False) + "\n"


def _sample(text: str) -> Sample | None:
    try:
        data: Any = json.loads(text)
        measures = {metric: Measure(*measure) for metric, measure in data.pop("measures").items()}
        return Sample(measures=measures, **data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
