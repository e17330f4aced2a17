"""A merge that stops, by whatever cause, goes on with the same bytes; two merges never share a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import make
import plait
import plait.journal
from plait.cli import main
from plait.errors import MergeError, ModelError, OutputError, PlaitError
from plait.front import Merge
from plait.journal import NAME, Journal, read

HERE = Path(__file__).parents[1]


class Stop(Exception):  # noqa: N818
    """Not a PlaitError: as from a bug, or a signal."""


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return make.model(tmp_path / "a", 1), make.model(tmp_path / "b", 2)


@pytest.fixture
def merge(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Merge:
    monkeypatch.setattr(plait.journal, "INTERVAL", 0.001)
    return plait.merge(make.recipe("linear", *models), shard_size=2000)


def stop_after(
    merge: Merge, out: Path, share: float = 0.5, then: Callable[[], Any] | None = None, **options: Any
) -> None:
    """Run until so much is done and a tensor is in the journal; then call `then`, or stop with an error that is no PlaitError."""
    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done >= share * sum(spec.nbytes for spec in merge.specs.values()):
            until = time.monotonic() + 10
            while not ((record := read(out / NAME)) and record.tensors) and time.monotonic() < until:
                time.sleep(0.001)
            if then is None:
                raise Stop
            then()

    merge.save(out, threads=1, progress=progress, **options)


def stopped(merge: Merge, out: Path, share: float = 0.5) -> Path:
    with pytest.raises(Stop):
        stop_after(merge, out, share)
    return out


def test_stopped_at_fifty_points(tmp_path: Path) -> None:
    """SIGKILL, SIGINT and SIGTERM at 50 points of the run: resumed, every file has an undisturbed run's bytes."""
    done = subprocess.run(
        [sys.executable, HERE / "interrupt.py", tmp_path, "60"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["hits"][name] for name in ("SIGKILL", "SIGINT", "SIGTERM")) >= 50
    assert any(found["taken up"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_resume(share: float, merge: Merge, tmp_path: Path) -> None:
    """What is finished is not made again, and the files are those of an undisturbed run."""
    expected = make.hashes(merge.save(tmp_path / "x" / "out").out, "*")
    out = stopped(merge, tmp_path / "out", share)
    record = read(out / NAME)
    assert record
    saved = merge.save(out, resume=True)
    assert saved.resumed == len(record.tensors) > 0
    assert make.hashes(out, "*") == expected
    assert not list(out.glob("*.partial"))


def other_weights(a: Path, b: Path) -> Merge:
    return plait.merge(make.recipe("linear", a, b, parameters={"weight": 0.25}), shard_size=2000)


def other_seed(a: Path, b: Path) -> Merge:
    return plait.merge(make.recipe("linear", a, b), shard_size=2000, seed=3)


def other_shards(a: Path, b: Path) -> Merge:
    return plait.merge(make.recipe("linear", a, b), shard_size=3000)


def other_input(a: Path, b: Path) -> Merge:
    make.model(b, 9)
    return plait.merge(make.recipe("linear", a, b), shard_size=2000)


CHANGES = {other_weights: "recipe", other_seed: "seed (was 0, is 3)", other_shards: "shard_size", other_input: "/b"}


def times(out: Path) -> dict[str, tuple[int, int]]:
    """File name -> its inode and when it was written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [out, *sorted(out.iterdir())]}


def test_nothing_to_resume(merge: Merge, tmp_path: Path) -> None:
    """`resume` of a merge that never began begins it; that of one that is whole says so and touches nothing."""
    saved = merge.save(tmp_path / "out", resume=True)
    assert not saved.untouched
    before = make.hashes(saved.out, "*"), times(saved.out)
    again = merge.save(saved.out, resume=True)
    assert again.untouched
    assert again.resumed == again.tensors == 21
    assert {*again.files} <= {*saved.files}
    assert (make.hashes(saved.out, "*"), times(saved.out)) == before


def test_whole_with_new_words(merge: Merge, tmp_path: Path) -> None:
    """A card with scores or words of somebody's own is no reason to refuse `resume` of a merge that is whole."""
    out = merge.save(tmp_path / "out").out
    (out / "README.md").write_text("mine")
    assert merge.save(out, resume=True).untouched
    assert (out / "README.md").read_text() == "mine"


def damage_tensor(out: Path) -> None:
    rewrite(max(out.glob("*.safetensors"), key=lambda p: p.stat().st_size))


def other_config(out: Path) -> None:
    (out / "config.json").write_text((out / "config.json").read_text() + " ")


def lost_shard(out: Path) -> None:
    next(out.glob("*.safetensors")).unlink()


def lost_tokenizer(out: Path) -> None:
    (out / "tokenizer.json").unlink()


def other_provenance(out: Path) -> None:
    make.write_json(out / "plait_provenance.json", [1])


def newer_input(out: Path) -> None:
    path = out.parent / "a" / "model.safetensors"
    os.utime(path, ns=(0, (out / "plait_provenance.json").stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    "change",
    [damage_tensor, other_config, lost_shard, lost_tokenizer, other_provenance, newer_input],
    ids=lambda f: f.__name__,
)
def test_not_quite_whole(change: Callable[[Path], None], merge: Merge, tmp_path: Path) -> None:
    """`resume` of a finished merge with anything that is not as it was is refused, and the folder left alone."""
    out = merge.save(tmp_path / "out").out
    change(out)
    before = make.hashes(out, "*")
    with pytest.raises(OutputError, match="not empty"):
        merge.save(out, resume=True)
    assert make.hashes(out, "*") == before


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_another_merge_is_whole(
    change: Callable[[Path, Path], Merge], models: tuple[Path, Path], merge: Merge, tmp_path: Path
) -> None:
    """`resume` where another recipe's, seed's, layout's or input's merge is whole is refused, and the model left alone."""
    out = merge.save(tmp_path / "out").out
    before = make.hashes(out, "*")
    with pytest.raises(OutputError, match="not empty"):
        change(*models).save(out, resume=True)
    assert make.hashes(out, "*") == before


def test_leftover(merge: Merge, tmp_path: Path) -> None:
    """A plain merge into a folder where one was interrupted says so, names both ways on, and touches nothing."""
    out = stopped(merge, tmp_path / "out")
    before = make.hashes(out, "*")
    with pytest.raises(OutputError, match="was interrupted") as caught:
        merge.save(out)
    assert "of 21 tensors finished" in str(caught.value.found)
    assert "--resume" in str(caught.value.do)
    assert "--force" in str(caught.value.do)
    assert make.hashes(out, "*") == before
    assert merge.save(out, force=True).resumed == 0
    assert not (out / NAME).exists()


def test_over_an_old_model(models: tuple[Path, Path], merge: Merge, tmp_path: Path) -> None:
    """A replacement that stops leaves the old model whole, and goes on to replace all of it."""
    out = plait.merge(make.recipe("linear", models[0]), shard_size=3000).save(tmp_path / "out").out
    before = make.hashes(out, "*")
    with pytest.raises(Stop):
        stop_after(merge, out, force=True)
    assert {name: found for name, found in make.hashes(out, "*").items() if name in before} == before
    merge.save(out, resume=True)
    assert make.hashes(out, "*") == make.hashes(merge.save(tmp_path / "x" / "out").out, "*")


def damage_bytes(out: Path) -> None:
    path = max(out.glob("*.partial"), key=lambda p: p.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[-40:] = bytes(40)
    path.write_bytes(raw)


def truncate(out: Path) -> None:
    for path in out.glob("*.partial"):
        os.truncate(path, 700)


def remove_shard(out: Path) -> None:
    next(out.glob("*.partial")).unlink()


def longer(out: Path) -> None:
    for path in out.glob("*.partial"):
        with open(path, "ab") as file:
            file.write(b"x" * 100)


def torn_line(out: Path) -> None:
    path = out / NAME
    path.write_bytes(path.read_bytes()[:-20])


def noise(out: Path) -> None:
    with open(out / NAME, "ab") as file:
        file.write(b"\xff\x00{\n[1]\n3\n")


def header_lost(out: Path) -> None:
    (out / NAME).write_bytes(b'{"plait_jour')


@pytest.mark.parametrize(
    "damage", [damage_bytes, truncate, remove_shard, longer, torn_line, noise, header_lost], ids=lambda f: f.__name__
)
def test_damage(damage: Callable[[Path], None], merge: Merge, tmp_path: Path) -> None:
    """Whatever befalls the shards and the journal in between, what does not have its hash is made again."""
    expected = make.hashes(merge.save(tmp_path / "x" / "out").out, "*")
    out = stopped(merge, tmp_path / "out")
    damage(out)
    merge.save(out, resume=True)
    assert make.hashes(out, "*") == expected


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_another_merge(
    change: Callable[[Path, Path], Merge], models: tuple[Path, Path], merge: Merge, tmp_path: Path
) -> None:
    """To resume with another recipe, seed, layout or input is refused with what changed; nothing is touched."""
    out = stopped(merge, tmp_path / "out")
    before, other = make.hashes(out, "*"), change(*models)
    with pytest.raises(OutputError, match="was another one") as caught:
        other.save(out, resume=True)
    assert CHANGES[change] in str(caught.value.found)
    assert make.hashes(out, "*") == before
    assert other.save(out, resume=True, force=True).resumed == 0
    assert make.hashes(out) == make.hashes(other.save(tmp_path / "x").out)


def test_another_version(merge: Merge, tmp_path: Path) -> None:
    """To resume with another version of plait, torch or numpy is refused with both versions."""
    out = stopped(merge, tmp_path / "out")
    path = out / NAME
    first, rest = path.read_text().split("\n", 1)
    header = json.loads(first)
    assert {"plait", "torch", "numpy"} <= header["for"]["versions"].keys()
    header["for"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(header) + "\n" + rest)
    with pytest.raises(OutputError, match=r"versions: torch \(was 1\.0, is "):
        merge.save(out, resume=True)


def test_data_before_the_line(merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is written after the bytes it speaks of are synced, and is itself synced before the shards are renamed."""
    calls: list[tuple[str, int]] = []
    real = dict(vars(os))
    for name in ("pwrite", "fdatasync", "fsync", "write"):

        def spy(file: int, *rest: Any, name: str = name) -> Any:
            result = real[name](file, *rest)
            calls.append((name, file))
            return result

        monkeypatch.setattr(os, name, spy)
    monkeypatch.setattr(Path, "replace", lambda a, b, real=Path.replace: (calls.append(("rename", -1)), real(a, b))[1])
    done: list[int] = []
    monkeypatch.setattr(
        Journal, "done", lambda self, *x, real=Journal.done: (done.append(len(calls)), real(self, *x))[1]
    )
    merge.save(tmp_path / "out", threads=2)
    journal = next(file for name, file in calls if name == "write")
    shards = {file for name, file in calls if name == "fdatasync"}
    lines = [i for i, call in enumerate(calls) if call == ("write", journal)][2:]
    renames = [i for i, (name, _) in enumerate(calls) if name == "rename"]
    assert len(shards) == len(merge.plan.shards) == len(renames)
    assert len(lines) >= 2
    before = 0
    for line in lines[:-1]:
        synced = [max(i for i, call in enumerate(calls[:line]) if call == ("fdatasync", file)) for file in shards]
        assert min(synced) > before
        before = line
    assert ("fsync", journal) in calls[lines[-1] : renames[0]]
    assert len(done) == 21


def test_two_at_once(models: tuple[Path, Path], merge: Merge, tmp_path: Path) -> None:
    """A second merge into one OUT is refused with the process of the first, whatever its options; the first is undisturbed."""
    out, refused = tmp_path / "out", list[PlaitError]()

    def second() -> None:
        for options in ({}, {"force": True}, {"resume": True}):
            made = f"plait.merge({make.recipe('linear', *models)!r}, shard_size=2000)"
            code = f"import plait; {made}.save({str(out)!r}, **{options})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
            assert f"another merge is writing to {out}" in done.stderr, done.stderr
            assert f"process {os.getpid()}" in done.stderr
            refused.append(PlaitError(done.stderr))

    called = []
    stop_after(merge, out, then=lambda: called or (called.append(1), second()))
    assert len(refused) == 3
    assert make.hashes(out, "*") == make.hashes(merge.save(tmp_path / "x" / "out").out, "*")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def rewrite(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-4:] = b"\0\0\0\0"
    with open(path, "r+b") as file:
        file.write(raw)


def replaced(path: Path) -> None:
    shutil.copyfile(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


SPOILT = {
    "deleted": (Path.unlink, "was removed"),
    "written to": (rewrite, "written to since"),
    "shorter": (lambda p: os.truncate(p, p.stat().st_size - 100), "bytes before"),
    "replaced": (replaced, "another file"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_input_spoilt_during_the_merge(case: str, models: tuple[Path, Path], merge: Merge, tmp_path: Path) -> None:
    """An input that is deleted, changed, cut or replaced during the run is told by name; nothing of the mixture stays."""
    spoil, said = SPOILT[case]
    path = models[1] / "model.safetensors"
    once: list[None] = []
    with pytest.raises(MergeError, match="during the merge") as caught:
        stop_after(merge, tmp_path / "out", 0.2, then=lambda: once or once.append(spoil(path)))
    assert str(path) in caught.value.what
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", ["resumes", "too early"])
def test_file_size_limit(limit: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    """A limit on the size of files is told in one message, exit 2; without it the merge begins, or goes on."""
    recipe = make.write_json(tmp_path / "recipe.yml", make.recipe("linear", *models))
    out = tmp_path / "out"
    command = f"ulimit -f {4 if limit == 'too early' else 1}; exec {sys.executable} -m plait merge {recipe} {out}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment())
    assert done.returncode == 2, done.stderr
    assert "error: writing to" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    plait.merge(recipe).save(out, resume=True)


def test_a_disk_that_takes_the_weights_alone(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Where a file beside the weights cannot be written, OUT is there to go on with, and ends as if nothing had been."""
    words = {**make.tokenizer(16), "padding": None, "note": "x" * 100_000}
    for model in models:
        make.write_json(model / "tokenizer.json", words)
    recipe = make.write_json(tmp_path / "recipe.yml", make.recipe("linear", *models))
    out = tmp_path / "out"
    command = f"ulimit -f 64; exec {sys.executable} -m plait merge {recipe} {out}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment())
    assert done.returncode == 2, done.stderr
    assert f"error: writing to {out} failed after the weights" in done.stderr
    assert "with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "config.json").exists()
    assert plait.merge(recipe).save(out, resume=True).resumed == 21
    (tmp_path / "x").mkdir()
    again = plait.merge(shutil.copy(recipe, tmp_path / "x")).save(tmp_path / "x" / "out").out
    assert make.hashes(out, "*") == make.hashes(again, "*")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "fdatasync", "replace"])
def test_broken_disk(call: str, merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails (EIO) is told in one message; OUT is absent, or goes on with the same bytes later."""
    expected = make.hashes(merge.save(tmp_path / "x" / "out").out, "*")
    real, calls = getattr(os, call), []

    def failing(*given: Any, **more: Any) -> Any:
        calls.append(call)
        if len(calls) > {"pwrite": 12, "fsync": 4}.get(call, 0):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OutputError) as caught:
            merge.save(tmp_path / "out", threads=1)
    assert os.strerror(errno.EIO) in str(caught.value)
    assert caught.value.wanted
    assert caught.value.do
    assert not (tmp_path / "out").exists() or read(tmp_path / "out" / NAME)
    merge.save(tmp_path / "out", resume=True)
    assert make.hashes(tmp_path / "out", "*") == expected


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file here whose reading fails")
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_unreadable_input(
    kernels: str, merge: Merge, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input whose disk fails in the middle is told by name; what is finished is kept and goes on."""
    expected = make.hashes(merge.save(tmp_path / "x" / "out").out, "*")
    if kernels == "off":
        monkeypatch.setattr("plait.kernels.library", lambda: None)

    def fail() -> None:  # from here on what is read through the input's descriptor are addresses that hold nothing
        nothing = os.open("/proc/self/mem", os.O_RDONLY)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") == str(models[1] / "model.safetensors"):
                    os.dup2(nothing, int(name))
        os.close(nothing)

    with pytest.raises(ModelError) as caught:
        stop_after(merge, tmp_path / "out", then=fail)
    assert f"{models[1] / 'model.safetensors'} cannot be read" in caught.value.what
    assert os.strerror(errno.EIO) in str(caught.value.found)
    assert caught.value.do
    again = plait.merge(make.recipe("linear", *models), shard_size=2000)
    again.save(tmp_path / "out", resume=(tmp_path / "out").exists())
    assert make.hashes(tmp_path / "out", "*") == expected


@contextlib.contextmanager
def small_disk(path: Path, nbytes: int) -> Iterator[Path]:
    """A file system of so many bytes, where the system lets us have one."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_full_disk(models: tuple[Path, Path], merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up during the merge is told; what is finished stays, and goes on once there is space."""
    monkeypatch.setattr("plait.writer._reserve", os.ftruncate)  # as on a file system that cannot reserve
    monkeypatch.setattr("plait.output.save.check_output", lambda *_: None)
    merge = plait.merge(make.recipe("linear", *(make.model(m, i, hidden=64) for i, m in enumerate(models))))
    expected = make.hashes(merge.save(tmp_path / "x" / "out").out, "*")
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        out, filler = disk / "out", disk / "filler"

        def fill() -> None:
            if not filler.exists():
                with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass

        with pytest.raises(OutputError) as caught:
            stop_after(merge, out, 0.3, then=fill)
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        kept = read(out / NAME)
        assert kept
        assert kept.tensors
        filler.unlink()
        assert merge.save(out, resume=True).resumed > 0
        assert make.hashes(out, "*") == expected


def test_command_line(
    merge: Merge, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line takes up a merge with --resume, and says how many tensors were there."""
    out = stopped(merge, tmp_path / "out")
    recipe = make.write_json(tmp_path / "recipe.yml", {})
    recipe.write_text(merge.plan.recipe.text)
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(recipe), str(out), "--out-shard-size", "2000"])
    assert ended.value.code == 2
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(recipe), str(out), "--out-shard-size", "2KB", "--resume"])
    assert ended.value.code == 0
    assert "of 21 tensors were there from before" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_hint(kill: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, or a polite kill, after a while: the message holds the command that goes on."""
    models = [make.model(tmp_path / str(i), i, hidden=256, vocab=20_000) for i in range(3)]
    recipe = make.recipe("della", *models[1:], base=models[0], parameters={"weight": 1.0, "density": 0.5})
    path, out = make.write_json(tmp_path / "recipe.yml", recipe), tmp_path / "out"
    often = "import plait.journal; from plait.cli import main; plait.journal.INTERVAL = 0.01; main()"
    command = [sys.executable, "-c", often, "merge", str(path), str(out), "-j", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        until = time.monotonic() + 60
        while not ((record := read(out / NAME)) and record.tensors) and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + kill
    assert "Traceback" not in errors
    assert f"to go on: plait merge {path} {out} -j 1 --resume" in errors
