"""A pytest plugin: every place in plait that makes an error does so in a test, and gives the parts of a message there.

A place whose error lacks a part fails the test that raises it. When the whole suite has run, the places that no test
raised fail the run, by name. Errors of child processes are not seen: a place needs a test in the test's own process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from messages import Site
from plait.errors import PlaitError

#: an error without parts of its own -> why
PASSED_ON = {("errors.py", "Problems"): "holds errors that have theirs"}
#: a file -> the package without which most of its places are out of reach, and which `make test` does not install (0.6 GB)
NEEDS = {"evaluate/tasks/harness.py": "lm_eval"}
#: options by which a run is no run of the whole suite
CHOSEN = ["keyword", "markexpr", "lf", "stepwise", "deselect", "ignore", "ignore_glob", "collectonly", "maxfail"]


class Raised:
    """Which places of the source below `house`, out of `sites`, made an error in this run."""

    def __init__(self, house: Path, sites: Callable[[], Sequence[Site]], needs: Mapping[str, str] = NEEDS) -> None:
        self.house, self.sites, self.needs = f"{house}/", sites, needs
        self.seen: set[tuple[str, int]] = set()  # path below the house, line
        self.said: list[str] = []
        self.real: Callable[..., None] = PlaitError.__init__

    def pytest_configure(self) -> None:
        @functools.wraps(self.real)
        def noted(error: PlaitError, *given: Any, **more: Any) -> None:
            self.real(error, *given, **more)
            caller = sys._getframe(1)
            self._note(error, caller.f_code.co_filename, caller.f_lineno)

        PlaitError.__init__ = noted  # type: ignore[method-assign]

    def pytest_unconfigure(self) -> None:
        PlaitError.__init__ = self.real  # type: ignore[method-assign]

    def _note(self, error: PlaitError, file: str, line: int) -> None:
        if file.startswith(self.house):
            path = file.removeprefix(self.house)
            self.seen.add((path, line))
            whole = error.what and error.do and (error.wanted or error.found)
            assert whole or (path, type(error).__name__) in PASSED_ON, f"{path}:{line} lacks a part: {error}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a worker of pytest-xdist saw."""
        self.seen |= {(path, line) for path, line in getattr(node, "workeroutput", {}).get("raised", [])}

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        config = session.config
        if hasattr(config, "workeroutput"):
            config.workeroutput["raised"] = list(self.seen)
        elif exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and _whole(config):
            places = self.sites()
            never = [site for site in places if not self._reached(site)]
            self.said = [f"{site.path}:{site.line}: no test raises this {site.error}" for site in never]
            if never:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            else:
                self.said = [f"all of {len(places)} errors were raised"]

    def _reached(self, site: Site) -> bool:
        lines = range(site.line, site.last + 1)
        lacking = site.path in self.needs and find_spec(self.needs[site.path]) is None
        return lacking or any((site.path, line) in self.seen for line in lines)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.said:
            terminalreporter.line(line)


def _whole(config: pytest.Config) -> bool:
    every = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return every and not any(config.getoption(name, None) for name in CHOSEN)
