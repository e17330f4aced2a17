"""The defects of mergekit 0.1.5 that were reproduced: for each, by its number, a test shows what plait does instead."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = 44


def test_every_row_has_a_test() -> None:
    """Tests named `test_row_NUMBER_…` cover all of the list, and nothing that is not in it."""
    named = {int(n) for path in HERE.rglob("test_*.py") for n in re.findall(r"def test_row_(\d+)_\w", path.read_text())}
    assert named == set(range(1, ROWS + 1))
