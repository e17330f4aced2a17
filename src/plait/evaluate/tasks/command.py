"""Any program that scores a model folder and prints JSON: --command 'CMD {model}'.

The last line that it prints to standard output is an object: metric -> a number; or a list of numbers, one for each item
and in the same order for every model, which gives intervals; or {"value": number or list, "higher_is_better": false}.
A merge that is not written is written to a temporary folder first.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plait.evaluate.cache import digest, file_digest
from plait.evaluate.reading import TaskError
from plait.evaluate.records import Measure, Sample, Settings, Subject, Task

OPTION = "--command"
METAVAR = "CMD"
HELP = "A program that prints JSON; {model} in it is the model's folder."
KEY = "all"


@dataclass(frozen=True)
class Command:
    name: str
    words: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Of the words, and of the files among them; what those files import is not seen."""
        files = [file_digest(Path(word)) for word in self.words if Path(word).is_file()]
        return digest("command 1", self.words, files)

    @property
    def keys(self) -> Sequence[str]:
        return [KEY]

    def measure(self, subject: Subject, keys: Sequence[str]) -> Iterator[Sample]:
        words = [word.replace("{model}", str(subject.folder())) for word in self.words]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise TaskError(
                f"{self.name} failed on {subject.name}",
                wanted="exit code 0",
                found=f"{done.returncode}: {_last(done.stderr) or _last(done.stdout)}",
                do=f"run it by itself: {shlex.join(words)}",
            )
        measures = _measures(_last(done.stdout), self.name)
        for i in reversed(
            range(max(len(values) for values in measures.values()))
        ):  # the key that stands for all comes last
            mine = {metric: values[i] for metric, values in measures.items() if i < len(values)}
            yield Sample(KEY if i == 0 else str(i), mine)


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _measures(line: str, name: str) -> dict[str, list[Measure]]:
    wrong = TaskError(
        f"{name} did not print scores",
        wanted='a last line such as {"score": 0.5}, or {"score": [1, 0, 1]} for single items',
        found=line[:80] or "nothing",
        do="let the program print its scores last, as JSON on one line",
    )
    try:
        data = json.loads(line)
    except ValueError:
        raise wrong from None
    if not isinstance(data, dict) or not data:
        raise wrong
    found = {}
    for metric, entry in data.items():
        described = entry if isinstance(entry, dict) else {"value": entry}
        value, higher = described.get("value"), bool(described.get("higher_is_better", True))
        numbers: list[Any] = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise wrong
        found[metric] = [Measure(float(n), 1.0, higher) for n in numbers]
    return found


def tasks(value: str, settings: Settings) -> list[Task]:
    """The command as a task; raises `TaskError` for one that cannot be meant."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise TaskError("the command cannot be read", found=f"{value} ({error})", do="mend the quotes") from error
    if not any("{model}" in word for word in words):
        raise TaskError(
            "the command does not name the model",
            wanted="{model} in it",
            found=value,
            do="write {model} where the model belongs",
        )
    if shutil.which(words[0]) is None:
        raise TaskError(f"there is no program {words[0]}", wanted="a program", found=value, do="check the path")
    own = [word for word in words if "{model}" not in word and not word.startswith("-")]
    return [Command(Path(own[-1] if len(own) > 1 else own[0]).stem, tuple(words))]
