"""A command that is refused, as every test of a mistake looks at it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plait.cli import main


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, and what tells whether it was touched."""
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: Any) -> str:
    """What the command line says: exit 2, what is wrong, what was wanted or found, what to do; nothing below `folder` changes."""
    before = state(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert "Traceback" not in told
    assert re.search(r"^error: .+", told, re.M), told
    for part in ("wanted|found", "do"):
        assert re.search(rf"^  ({part}): +\S", told, re.M), f"{part} is not told: {told}"
    assert state(folder) == before, told
    return told
