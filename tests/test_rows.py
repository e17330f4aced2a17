"""The defects of mergekit 0.1.5 that were reproduced: for each, by its number, a test shows what plait does instead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import make

HERE = Path(__file__).parent
ROWS = 44


def test_every_row_has_a_test() -> None:
    """Tests named `test_row_NUMBER_…` cover all of the list, and nothing that is not in it."""
    named = {int(n) for path in HERE.rglob("test_*.py") for n in re.findall(r"def test_row_(\d+)_\w", path.read_text())}
    assert named == set(range(1, ROWS + 1))


def test_row_42_memory(tmp_path: Path) -> None:
    """Memory does not follow the largest tensor (mergekit: 16 to 22 times it): one of four times the size adds little."""
    code = (
        "import re, sys; from plait.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peaks = {}
    for rows in (20_000, 80_000):
        folder = tmp_path / str(rows)
        models = [make.model(folder / str(i), i, layers=1, hidden=256, vocab=rows, tied=True) for i in range(3)]
        recipe = make.recipe("ties", *models[1:], base=models[0], parameters={"weight": 1.0, "density": 0.5})
        path = make.write_json(folder / "r.yml", recipe)
        command = [
            sys.executable,
            "-c",
            code,
            "merge",
            path,
            folder / "out",
            "--quiet",
            "-j",
            "2",
            "--no-copy-tokenizer",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[rows] = int(done.stdout.split()[-1]) * 1024
    assert peaks[80_000] < 3 * 80_000 * 256 * 4
    assert peaks[80_000] - peaks[20_000] < 60_000 * 256 * 4 // 2, peaks
