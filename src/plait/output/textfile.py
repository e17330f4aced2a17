"""A file of text, for people: a recipe, a card, numbers."""

from __future__ import annotations

from pathlib import Path

from plait.errors import OutputError, reason


def write_text(path: Path, text: str, mode: str = "w") -> None:
    """Write a text (`mode` "a": at the end of what is there); `OutputError` where the system does not let us."""
    try:
        with open(path, mode, encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written",
            wanted="a file in a folder that is there, may be written to and has space",
            found=reason(error),
            do="name another file, or mend the folder",
        ) from error
