"""Whole processes, measured: wall and CPU seconds, and the most memory that one of them held."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figures:
    wall: float  # seconds
    cpu: float  # seconds of user and system, children included
    peak: float  # resident MB of the process, or of its largest child


#: a small process between this one and the measured one, whose peak would else count what this one held when it began
LAUNCHER = """
import json, os, subprocess, sys, time
group = sys.argv.pop(1)
if group:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - begun
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def measured(command: list[str], where: Path, wanted: int = 0, group: Path | None = None) -> Figures:
    """Run a command that must end with the exit code `wanted`, in a control group if one is given.

    Python may keep compiled modules, as installers do.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with open(where / "log", "w") as log:
        launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(group or ""), *command]
        done = subprocess.run(launcher, stdout=subprocess.PIPE, stderr=log, cwd=where, env=environment, check=True)
    code, wall, cpu, peak = json.loads(done.stdout)
    if code != wanted:
        sys.exit(f"{shlex.join(command)} ended with {code}:\n{(where / 'log').read_text()[-2000:]}")
    return Figures(wall, cpu, peak / (1024 if sys.platform == "linux" else 1 << 20))


@contextmanager
def slow_disk(folder: Path, rate: int) -> Iterator[Path]:
    """A control group in which the disk of `folder` reads and writes so many bytes a second; wants Linux and root."""
    device = os.stat(folder).st_dev
    disk = f"{os.major(device)}:{os.minor(device)}"
    first = Path("/sys/fs/cgroup/blkio")  # of the first version of control groups
    group = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"plait-{os.getpid()}"
    try:
        if not first.is_dir():
            (group.parent / "cgroup.subtree_control").write_text("+io")
        group.mkdir()
        try:
            if first.is_dir():
                for way in ("read", "write"):
                    (group / f"blkio.throttle.{way}_bps_device").write_text(f"{disk} {rate}")
            else:
                (group / "io.max").write_text(f"{disk} rbps={rate} wbps={rate}")
            yield group
        finally:
            group.rmdir()
    except OSError as error:
        sys.exit(f"a disk cannot be made slow here: {error}")


#: a process that holds memory until its input ends
HOLDER = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, len(memory), mmap.PAGESIZE):
    memory[at] = 1
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowded(free: int) -> Iterator[None]:
    """Another process holds all memory but so many bytes, as on a machine that is used for other things too; wants Linux.

    See `fill` for why.
    """
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    size = int(lines["MemAvailable"].split()[0]) * 1024 - free
    if size <= 0:
        sys.exit(f"these inputs, uncached, want {free / 1e9:.1f} GB of free memory")
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", HOLDER, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield


def fill(path: Path, nbytes: int) -> None:
    """Fill so much of the page cache with a file that is all hole, as memory is full of files that nobody wants any more.

    Memory that is free, virtual machines give back to their hosts within seconds, and what is read next pays for getting it anew:
    more than for reading it, and the more the longer it takes.
    """
    path.unlink(missing_ok=True)
    buffer = bytearray(1 << 20)
    with path.open("xb+", buffering=0) as file:
        file.truncate(nbytes)
        while file.readinto(buffer):
            pass


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
