"""The hook of raised.py can fail: on small suites with errors of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"

HOUSE = """
from plait.errors import PlaitError

class Odd(PlaitError): ...

class Worded(Odd):
    def __init__(self, word):
        super().__init__(word, wanted="another", do="take it")

def several(n):
    if n == 1:
        raise Odd(
            "one",
            found=str(n),
            do="take another",
        )
    raise Worded("two")

def bare():
    raise Odd("bare", do="no more than this")

def far():
    raise Odd("far", found="a package", do="install it")
"""
SUITE = """
import pytest
import house.rooms

@pytest.mark.parametrize("n", [1, 2])
def test_several(n):
    with pytest.raises(house.rooms.PlaitError):
        house.rooms.several(n)

def test_far():
    with pytest.raises(house.rooms.Odd):
        house.rooms.far()
"""
BARE = """
def test_bare():
    with pytest.raises(house.rooms.Odd):
        house.rooms.bare()
"""
CONFTEST = """
from pathlib import Path
import messages, raised

HOUSE = Path(__file__).parent / "house"

def sites():
    return messages.read({"rooms.py": (HOUSE / "rooms.py").read_text()})

def pytest_configure(config):
    config.pluginmanager.register(raised.Raised(HOUSE, sites, NEEDS))
"""
HERE = Path(__file__).parent


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A house of three errors that are whole, and tests that raise each."""
    for folder in ("house", "tests"):
        pytester.mkdir(folder)
    write(pytester, HOUSE.replace('raise Odd("bare", do=', "print("), SUITE)
    paths, options = f"{HERE} {HERE.parent / 'docs'} .", "--import-mode=importlib -p no:hypothesispytest"
    pytester.makeini(f"[pytest]\ntestpaths = tests\npythonpath = {paths}\naddopts = {options}")
    return pytester


def write(suite: pytest.Pytester, house: str, tests: str, needs: str = "{}") -> None:
    (suite.path / "house" / "rooms.py").write_text(house)
    (suite.path / "tests" / "test_rooms.py").write_text(tests)
    (suite.path / "conftest.py").write_text(CONFTEST.replace("NEEDS", needs))


def run(suite: pytest.Pytester, *options: str) -> tuple[int, str]:
    """Exit code and output."""
    done = suite.runpytest_inprocess(*options)
    return done.ret, done.stdout.str()


def test_all_are_raised(suite: pytest.Pytester) -> None:
    """A suite that raises every error passes, and says so: those of several lines, and those of a class that words its own."""
    code, said = run(suite)
    assert code == 0, said
    assert "all of 3 errors were raised" in said


def test_one_is_not(suite: pytest.Pytester) -> None:
    """A place that no test raises fails the run of the whole suite, by path and line; not a run of some tests."""
    write(suite, HOUSE, SUITE.replace("[1, 2]", "[2]"))
    code, said = run(suite)
    assert code == 1
    assert "rooms.py:12: no test raises this Odd" in said
    assert "rooms.py:20: no test raises this Odd" in said
    assert "rooms.py:8" not in said
    for some in (["-k", "several"], ["tests"], ["--deselect", "tests/test_rooms.py::test_far"]):
        code, said = run(suite, *some)
        assert code == 0, said
        assert "raised" not in said


def test_workers(suite: pytest.Pytester) -> None:
    """What any worker of pytest-xdist saw is seen; what none did is not."""
    write(suite, HOUSE, SUITE)
    done = suite.runpytest_subprocess("-n", "2")
    assert done.ret == 1
    (line,) = [line for line in done.outlines if "no test raises" in line]
    assert "rooms.py:20" in line


def test_a_part_is_lacking(suite: pytest.Pytester) -> None:
    """An error without what was wanted or found fails the test that raises it."""
    write(suite, HOUSE, SUITE + BARE)
    code, said = run(suite)
    assert code == 1
    assert "rooms.py:20 lacks a part: bare" in said


@pytest.mark.parametrize(("package", "code"), [("no_such_package", 0), ("pytest", 1)])
def test_out_of_reach(package: str, code: int, suite: pytest.Pytester) -> None:
    """Places that need a package are passed over only where it is not installed."""
    write(suite, HOUSE, "def test_nothing(): ...", repr({"rooms.py": package}))
    assert run(suite)[0] == code
