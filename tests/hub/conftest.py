"""A Hub on loopback, and a user's process that runs plait against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raised
from hub.fakehub import FakeHub

#: runs command lines one after the other: PyTorch is loaded once; only the waiting between tries is cut short
PROCESS = """
import contextlib, faulthandler, io, json, os, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
import messages, raised
from plait.cli import main
seen = raised.watch(messages.HOUSE)
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    args, token = json.loads(line)
    faulthandler.dump_traceback_later(60, exit=True)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(args[1], {}) if args[0] == "-c" else main(args)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([[code, out.getvalue(), err.getvalue()], sorted(seen)]), file=answers, flush=True)
"""


@dataclass
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str


@dataclass
class User:
    """Runs `plait ARGS` (or `-c CODE`) against the Hub, with a token that is looked for in everything that plait says."""

    process: subprocess.Popen[str]
    hub: FakeHub
    seen: set[tuple[str, int]]  # the places whose errors the process has raised, for tests/raised.py

    def plait(self, *args: Any, token: str | None = "hf_test") -> Done:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([[str(arg) for arg in args], token]) + "\n")
        self.process.stdin.flush()
        answer, seen = json.loads(self.process.stdout.readline())
        self.seen.update(map(tuple, seen))
        done = Done(*answer)
        assert self.hub.token not in done.out + done.err
        assert "Traceback" not in done.err
        return done

    def ok(self, *args: Any, **more: Any) -> Done:
        done = self.plait(*args, **more)
        assert done.code == 0, done.err
        return done


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a user whose Hub is at `url`, with a cache of their own."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **more,
    }


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[tuple[FakeHub, User, Path]]:
    """One server and one process for all tests."""
    home = tmp_path_factory.mktemp("hub")
    with FakeHub(blobs=home / "blobs") as hub, open(home / "log", "w") as log:
        patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        env = environment(hub.url, home / "home", PYTHONPATH=os.pathsep.join(sys.path), **patience)
        command = [sys.executable, "-c", PROCESS]
        with subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process:
            yield hub, User(process, hub, pytestconfig.stash.get(raised.SEEN, set())), home
            assert process.stdin
            process.stdin.close()
            process.wait(30)
    assert hub.token not in (home / "log").read_text()


@pytest.fixture
def user(desk: tuple[FakeHub, User, Path]) -> User:
    """A user before an empty Hub."""
    hub, user, _ = desk
    hub.reset()
    return user


@pytest.fixture
def hub(user: User) -> FakeHub:
    return user.hub
