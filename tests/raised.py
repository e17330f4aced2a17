"""A pytest plugin: every place in plait that makes an error does so in a test, and gives the parts of a message there.

A place whose error lacks a part fails the test that raises it. When the whole suite has run, the places that no test
raised fail the run, by name. Of child processes only those are seen that `watch` themselves, as the one in tests/hub does.
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


Seen = set[tuple[str, int]]  # path below the house, line
SEEN = pytest.StashKey[Seen]()


def watch(house: Path) -> Seen:
    """From now on, gather the places of the source below `house` that make errors, each with its parts."""
    seen: Seen = set()
    real, start = PlaitError.__init__, f"{house}/"

    @functools.wraps(real)
    def noted(error: PlaitError, *given: Any, **more: Any) -> None:
        real(error, *given, **more)
        caller = sys._getframe(1)
        if caller.f_code.co_filename.startswith(start):
            path = caller.f_code.co_filename.removeprefix(start)
            seen.add((path, caller.f_lineno))
            whole = error.what and error.do and (error.wanted or error.found)
            passed = (path, type(error).__name__) in PASSED_ON
            assert whole or passed, f"{path}:{caller.f_lineno} lacks a part: {error}"

    PlaitError.__init__ = noted  # type: ignore[method-assign]
    return seen


class Raised:
    """Holds a run of the whole suite to raise every one of the `sites` of the source below `house`."""

    def __init__(self, house: Path, sites: Callable[[], Sequence[Site]], needs: Mapping[str, str] = NEEDS) -> None:
        self.house, self.sites, self.needs = house, sites, needs
        self.said: list[str] = []
        self.real: Callable[..., None] = PlaitError.__init__

    def pytest_configure(self, config: pytest.Config) -> None:
        self.seen = config.stash[SEEN] = watch(self.house)

    def pytest_unconfigure(self) -> None:
        PlaitError.__init__ = self.real  # type: ignore[method-assign]

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
