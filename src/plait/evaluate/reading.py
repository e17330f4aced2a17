"""The files that tasks are made of, read with messages that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.errors import PlaitError, Where


class TaskError(PlaitError):
    """A task that cannot be asked: its file, its settings, or a program that it needs."""


def whole(path: Path) -> str:
    """The text of a file; raises `TaskError` for one that is missing, empty or no text."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise TaskError(
            f"{path} cannot be read", wanted="a file", found=error.strerror or str(error), do="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not text", wanted="UTF-8", found=str(error), do="save it in UTF-8") from error
    if not text.strip():
        raise TaskError(f"{path} is empty", wanted="text", found="nothing", do="check the path, or fill the file")
    return text


def rows(path: Path) -> Iterator[tuple[Where, dict[str, Any]]]:
    """(place, object) of each line of a JSONL file that is not blank."""
    for number, line in enumerate(whole(path).splitlines(), 1):
        if line.strip():
            where = Where(str(path), number)
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TaskError(
                    "a line is not JSON",
                    wanted="{…} on each line",
                    found=str(error),
                    do="write one object on one line",
                    where=where,
                ) from error
            if not isinstance(row, dict):
                raise TaskError(
                    "a line is no JSON object",
                    wanted="{…}",
                    found=line[:60],
                    do='write {"prompt": …} on each line',
                    where=where,
                )
            yield where, row


def text_at(row: dict[str, Any], key: str, where: Where) -> str:
    """The text at `key`, not empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise TaskError(
            f"a line has no {key!r}",
            wanted=f'{{"{key}": "…"}}',
            found=json.dumps(row)[:60],
            do=f"write text at {key!r}",
            where=where,
        )
    return value
