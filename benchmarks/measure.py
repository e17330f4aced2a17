"""Whole processes, measured: wall and CPU seconds, and the most memory that one of them held."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figures:
    wall: float  # seconds
    cpu: float  # seconds of user and system, children included
    peak: float  # resident MB of the process, or of its largest child


def measured(command: list[str], where: Path, wanted: int = 0) -> Figures:
    """Run a command that must end with the exit code `wanted`.

    Python may keep compiled modules, as it does where packages are installed. A child's peak counts what its parent held when
    it began: keep the parent small.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with open(where / "log", "w") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=where, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != wanted:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}:\n{(where / 'log').read_text()[-2000:]}")
    return Figures(
        wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
    )


def plait(*arguments: object) -> list[str]:
    """The command line of this environment's plait."""
    return [str(Path(sys.executable).with_name("plait")), *map(str, arguments)]


def machine() -> str:
    """Processor, cores and memory, in words."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"
