"""`plait push`: what arrives, what is sent twice, what is refused."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import make
from hub.conftest import User, environment
from hub.fakehub import FakeHub
from plait.errors import PublishError
from plait.publish import push

NAMES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def held(hub: FakeHub, repo: str, revision: str = "main") -> dict[str, bytes]:
    """Name -> bytes of what the Hub has."""
    found = hub.repo("model", repo)
    files = found.commits[found.resolve(revision)]
    return {name: (hub.blobs / (file["lfs"] or file["oid"])).read_bytes() for name, file in files.items()}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(hub: FakeHub, mark: int = 0) -> list[tuple[str, str, Any]]:
    """The bodies of large files that were sent since."""
    return [request for request in hub.requests[mark:] if request[0] == "PUT"]


def test_push(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A push makes the repository and brings every file whole; the second push sends no weights; what is new is."""
    folder = make.model(tmp_path / "a")
    done = user.ok("push", folder, "tester/merged", "--private", "--json")
    facts = json.loads(done.out)
    assert facts["url"] == f"{hub.url}/tester/merged"
    assert facts["files"] == NAMES
    assert held(hub, "tester/merged") == local(folder)
    assert hub.repo("model", "tester/merged").private
    mark = len(hub.requests)
    again = json.loads(user.ok("push", folder, "tester/merged", "--json").out)
    assert again["commit"] == facts["commit"]
    assert sent(hub, mark) == []
    other = make.model(tmp_path / "b", 1, shards=2)
    (other / ".cache").mkdir()
    (other / ".cache" / "note").write_text("mine")
    user.ok("push", other, "tester/merged", "--message", "two shards")
    assert set(held(hub, "tester/merged")) == {p.name for p in other.iterdir()} - {".cache"}
    assert hub.repo("model", "tester/merged").log[hub.repo("model", "tester/merged").refs["main"]][0][0] == "two shards"


def test_branch_and_pull_request(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """--revision sends to a branch and --create-pr to a pull request; main stays as it was."""
    hub.publish("tester/merged", make.model(tmp_path / "a"))
    before = held(hub, "tester/merged")
    folder = make.model(tmp_path / "b", 1)
    done = user.ok("push", folder, "tester/merged", "--revision", "try")
    assert f"{hub.url}/tester/merged/tree/try" in done.out
    done = user.ok("push", folder, "tester/merged", "--create-pr")
    assert f"{hub.url}/tester/merged/discussions/1" in done.out
    assert held(hub, "tester/merged", "try") == local(folder) == held(hub, "tester/merged", "refs/pr/1")
    assert held(hub, "tester/merged") == before


def test_interrupted(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A connection that drops is taken up within the push; after a push that failed, the next one sends only the rest."""
    folder = make.model(tmp_path / "a", shards=2)
    hub.fail("/_lfs/", "drop", times=1, method="PUT")
    user.ok("push", folder, "tester/one")
    assert held(hub, "tester/one") == local(folder)

    other = make.model(tmp_path / "b", 1, shards=2)
    hub.fail("/commit/", 500, times=40, method="POST")
    failed = user.plait("push", other, "tester/two")
    assert failed.code == 2
    assert "the Hub has trouble (500)" in failed.err
    hub.faults.clear()
    mark = len(hub.requests)
    user.ok("push", other, "tester/two")
    assert sent(hub, mark) == []
    assert held(hub, "tester/two") == local(other)


def test_killed(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """After a push that was killed in the middle of a file, the next one sends that file, and no file that had arrived."""
    folder = make.model(tmp_path / "a", 71, shards=2)  # bytes of its own: the Hub keeps what other tests sent
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors")))
    hub.fail(f"/_lfs/{second}", "drop", times=100, method="PUT")
    env = environment(hub.url, tmp_path / "home", HF_TOKEN=hub.token)
    command = [sys.executable, "-m", "plait", "push", str(folder), "tester/one", "--quiet"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            seen = {(path.split("/")[2], status) for method, path, status in list(hub.requests) if "/_lfs/" in path}
            if {(first, 200), (second, "dropped")} <= seen:
                process.kill()
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    assert "model.safetensors.index.json" not in held(hub, "tester/one")
    hub.faults.clear()
    mark = len(hub.requests)
    user.ok("push", folder, "tester/one")
    assert [path.split("/")[2] for _, path, _ in sent(hub, mark)] == [second]
    assert held(hub, "tester/one") == local(folder)


def test_row_28_offline_push(tmp_path: Path) -> None:
    """Without a Hub, relative paths merge; merge --push says so before the work, and push leaves the model as it is."""
    for name in ("a", "b"):
        make.model(tmp_path / "m" / name)
    make.write_json(tmp_path / "r.yml", make.recipe("linear", "m/a", "m/b"))
    env = environment("http://127.0.0.1:9", tmp_path / "home", HF_TOKEN="hf_test")
    offline = {**env, "HF_HUB_OFFLINE": "1"}

    def run(*words: str, env: dict[str, str] = env) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "plait", *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    for where, words in ((env, "the Hub cannot be reached"), (offline, "HF_HUB_OFFLINE=1")):
        done = run("merge", "r.yml", "out", "--push", "tester/merged", env=where)
        assert (done.returncode, words in done.stderr) == (2, True)
        assert not (tmp_path / "out").exists()
    assert run("merge", "r.yml", "out", env=offline).returncode == 0
    before = local(tmp_path / "out")
    assert {"README.md", "tokenizer.json", "config.json"} <= before.keys()
    done = run("push", "out", "tester/merged")
    assert (done.returncode, "Traceback" in done.stderr, "nothing was sent" in done.stderr) == (2, False, True)
    assert local(tmp_path / "out") == before


def test_row_43_unreachable_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that is out of reach is asked once, and no request of a push is tried again and again."""
    tries = []
    real = socket.create_connection

    def counted(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        tries.append(address)
        return real(address, *rest, **more)

    monkeypatch.setattr(socket, "create_connection", counted)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(PublishError, match="cannot be pushed to"):
        push(make.model(tmp_path / "a"), "tester/merged")
    assert tries == [("127.0.0.1", 9)]


def test_merge_whose_push_fails(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """When the push after a merge fails, the merge is whole, and the message tells how to send it, which then does."""
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", make.model(tmp_path / "a")))
    hub.fail("/commit/", 500, times=40, method="POST")
    done = user.plait("merge", path, tmp_path / "out", "--push", "tester/merged", "--quiet")
    assert done.code == 2
    again = done.err.splitlines()[0].partition("to send it: plait ")[2].split()
    hub.faults.clear()
    user.ok(*again)
    assert held(hub, "tester/merged") == local(tmp_path / "out")


def test_merge_and_push(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """merge --push publishes the result, whose card names the repository; the token is nowhere in it."""
    path = make.write_json(
        tmp_path / "r.yml", make.recipe("linear", *(make.model(tmp_path / n, i) for i, n in enumerate("ab")))
    )
    done = user.ok("merge", path, tmp_path / "out", "--push", "tester/merged", "--private", "--json")
    assert json.loads(done.out)["pushed"]["url"] == f"{hub.url}/tester/merged"
    there = held(hub, "tester/merged")
    assert there == local(tmp_path / "out")
    assert b'from_pretrained("tester/merged")' in there["README.md"]
    assert not any(hub.token.encode() in data for data in there.values())


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("tester/x y", "hf_test", "is no name for a repository"),
        ("merged", "hf_test", "names no owner"),
        ("tester/merged", None, "there is no token for the Hub"),
        ("tester/merged", "hf_wrong", "the Hub does not accept the token (401)"),
        ("others/merged", "hf_test", "your token may not write there (403)"),
        ("others/there", "hf_test", "your token may not write there (403)"),
    ],
)
def test_refusals(repo: str, token: str | None, words: str, user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Where a push cannot go is said with exit 2, before a merge begins its work where that can be known."""
    folder = make.model(tmp_path / "a")
    hub.publish("others/there", folder)
    hub.read_only.add("others")
    done = user.plait("push", folder, repo, token=token)
    assert done.code == 2
    assert words in done.err
    if "others" not in repo:
        path = make.write_json(tmp_path / "r.yml", make.recipe("linear", folder))
        done = user.plait("merge", path, tmp_path / "out", "--push", repo, token=token)
        assert done.code == 2
        assert words in done.err
        assert not (tmp_path / "out").exists()


def test_a_token_that_may_only_read(user: User, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may not write is told before a merge begins its work."""
    monkeypatch.setattr(hub, "role", "read")
    folder = make.model(tmp_path / "a")
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", folder))
    for words in (("push", folder), ("merge", path, tmp_path / "out", "--push")):
        done = user.plait(*words, "tester/merged")
        assert done.code == 2
        assert "the token may only read" in done.err
        assert "found:  role: read" in done.err
    assert not (tmp_path / "out").exists()
    assert "tester/merged" not in hub.repos


def test_not_a_model(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """What is not a whole model stays at home: nothing asked of the Hub."""
    folder = make.model(tmp_path / "a", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    partial = make.model(tmp_path / "b")
    (partial / "model.safetensors.partial").write_bytes(b"")
    short = make.model(tmp_path / "c")
    (short / "model.safetensors").write_bytes((short / "model.safetensors").read_bytes()[:-1])
    for out, words in (
        (tmp_path / "none", "no such directory"),
        (folder, "lacks 1 of its 2 shards"),
        (partial, "is not finished"),
        (short, "is not a whole safetensors file"),
    ):
        done = user.plait("push", out, "tester/merged")
        assert done.code == 2
        assert words in done.err
    assert hub.requests == []


def test_public_stays_public(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """--private refuses a repository that everybody can see."""
    hub.publish("tester/merged", make.model(tmp_path / "a"))
    done = user.plait("push", make.model(tmp_path / "b", 1), "tester/merged", "--private")
    assert done.code == 2
    assert "tester/merged is public" in done.err
    assert held(hub, "tester/merged") == local(tmp_path / "a")


def test_other_bytes(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """A push whose bytes changed on the way is not called a success."""
    folder = make.model(tmp_path / "a")
    tokenizer = folder / "tokenizer.json"
    hub.then = ("/commit/main", lambda: tokenizer.write_text(tokenizer.read_text() + " "))
    done = user.plait("push", folder, "tester/merged")
    assert done.code == 2
    assert "1 files on the Hub are not those of" in done.err
    assert "tokenizer.json" in done.err


def test_card_that_the_hub_refuses(user: User, hub: FakeHub, tmp_path: Path) -> None:
    """Front matter that the Hub does not take is named as such."""
    folder = make.model(tmp_path / "a")
    (folder / "README.md").write_text("---\nlicense: none of yours\n---\n")
    done = user.plait("push", folder, "tester/merged")
    assert done.code == 2
    assert '"license" must be one of the list' in done.err
