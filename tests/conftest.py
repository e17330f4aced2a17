"""What all tests share."""

import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

# before torch and huggingface_hub are imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"

# a shell starts what runs in the background with Ctrl-C ignored, and processes of tests would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder: path -> inode and when it was written."""
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line that is refused with the sentence `said`, and return all that it tells; it runs inside of `during()`.

    Exit 2, no traceback; what was wanted or found, and what to do; below tmp_path nothing is written or changed.
    """
    from plait.cli import main

    def run(said: str, *command: object, during: Callable[[], AbstractContextManager[None]] = nullcontext) -> str:
        before = state(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, during():
            main([str(word) for word in command])
        told = capsys.readouterr().err
        assert ended.value.code == 2
        assert said in told
        assert "Traceback" not in told
        assert re.search(r"^error: .+", told, re.M)
        for part in ("wanted|found", "do"):
            assert re.search(rf"^  ({part}): +\S", told, re.M), f"{part} is not told"
        assert state(tmp_path) == before
        return told

    return run


@pytest.fixture
def nobody() -> Iterator[tuple[Path, Callable[[], AbstractContextManager[None]]]]:
    """A folder that everybody may look into, and what makes root, who may do everything, a user like any other for a while."""

    @contextmanager
    def become() -> Iterator[None]:
        if os.getuid() != 0:
            yield
            return
        os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder), become


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """A limit on the size of every file that this process writes, for a while: `small_files(bytes)`."""

    @contextmanager
    def limited(nbytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def pytest_configure(config: pytest.Config) -> None:
    import messages
    from raised import Raised

    config.pluginmanager.register(Raised(messages.HOUSE, messages.sites))
