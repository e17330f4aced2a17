"""Shards are laid out before anything is written; what is written is what the safetensors library reads."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from safetensors import safe_open

import make
from plait.blocks import past_cache
from plait.checkpoint.dtypes import spec_of
from plait.checkpoint.header import read_header
from plait.errors import OutputError
from plait.layout import Shard, index_json, layout
from plait.testing.checkpoints import same
from plait.types import DTYPES, TensorSpec
from plait.writer import Writer

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tensors = st.builds(TensorSpec, st.sampled_from([code for code in DTYPES if code != "F4"]), shapes)
specs = st.dictionaries(names.filter(lambda n: n != "__metadata__"), tensors, max_size=12)
sizes = st.integers(1, 400)
#: what decides the bytes, for the journal
KEY = {"recipe": "none"}
laws = options(deadline=None, max_examples=150)


def image(shard: Shard) -> bytes:
    """The file as it is before any tensor is written."""
    return shard.header + bytes(shard.nbytes - len(shard.header))


@given(specs, sizes)
@laws
def test_places(specs: dict[str, TensorSpec], size: int) -> None:
    """Every tensor lies in one shard, aligned to its entries; the tensors of a shard fill it, without gap or overlap."""
    shards = layout(specs, size)
    assert sorted(name for shard in shards for name in shard.offsets) == sorted(specs)
    for shard in shards:
        at = len(shard.header)
        assert at % 8 == 0
        # an empty tensor shares its place with the one that follows
        for name in sorted(shard.offsets, key=lambda n: (shard.offsets[n], specs[n].nbytes)):
            assert shard.offsets[name] == at
            assert at % (DTYPES[specs[name].dtype].bits // 8) == 0
            at += specs[name].nbytes
        assert at == shard.nbytes


@given(specs, sizes)
@laws
def test_limit(specs: dict[str, TensorSpec], size: int) -> None:
    """Shards take the tensors in order; one is closed when, and only when, the next tensor would exceed the limit."""
    shards = layout(specs, size)
    order = list(specs)
    groups = [sorted(shard.offsets, key=order.index) for shard in shards]
    assert [name for group in groups for name in group] == order
    held = [sum(specs[name].nbytes for name in group) for group in groups]
    assert all(n <= size or specs[group[0]].nbytes == n for n, group in zip(held, groups, strict=True))
    assert all(n + specs[later[0]].nbytes > size for n, later in zip(held, groups[1:], strict=False))


@given(specs, sizes)
@laws
def test_headers(specs: dict[str, TensorSpec], size: int) -> None:
    """The safetensors library reads each header, and finds the names, dtypes and shapes that were asked for."""
    found = {}
    for shard in layout(specs, size):
        for name, entry in safetensors.deserialize(image(shard)):
            found[name] = (entry["dtype"], tuple(entry["shape"]))
    assert found == {name: (spec.dtype, spec.shape) for name, spec in specs.items()}


@given(specs, sizes)
@laws
def test_index(specs: dict[str, TensorSpec], size: int) -> None:
    """The index sends each name to the shard that holds it, and the sizes are the sums."""
    shards = layout(specs, size)
    index = json.loads(index_json(specs, shards))
    by_name = {shard.filename: shard for shard in shards}
    assert list(index["weight_map"]) == list(specs)
    assert all(name in by_name[file].offsets for name, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in specs.values())
    assert index["metadata"]["total_parameters"] == sum(spec.numel for spec in specs.values())


def test_names_of_files() -> None:
    """One shard is model.safetensors; several are numbered from 1, with their count."""
    one = {name: TensorSpec("F32", (2,)) for name in "abc"}
    assert [shard.filename for shard in layout(one, 24)] == ["model.safetensors"]
    assert [shard.filename for shard in layout(one, 8)] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def mixed() -> make.Tensors:
    generator = torch.Generator().manual_seed(0)
    made = {f"x{i}": torch.randn(9, i, generator=generator).to(dtype) for i, dtype in enumerate(DTYPE_LIST)}
    return made | {
        "scalar": torch.tensor(3, dtype=torch.int8),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True]),
    }


DTYPE_LIST = [torch.bfloat16, torch.float64, torch.float16, torch.float32, torch.int64, torch.float8_e4m3fn]


@pytest.mark.parametrize("size", [10**9, 200])
def test_written(size: int, tmp_path: Path) -> None:
    """Whatever the order in which rows arrive, the library opens each file and finds the tensors, bit for bit."""
    made = mixed()
    specs = {name: spec_of(x) for name, x in made.items()}
    shards = layout(specs, size)
    pieces = [(name, row) for name, spec in specs.items() for row in range(0, spec.matrix[0], 2)]
    random.Random(0).shuffle(pieces)
    with Writer(tmp_path / "out", shards, specs, KEY) as writer:
        for name, row in pieces:
            writer.write(name, row, made[name].reshape(specs[name].matrix)[row : row + 2])
        files = writer.finish()
        writer.close(files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(shard.filename for shard in shards)
    assert [file.name for file in files] == [shard.filename for shard in shards]
    found = {}
    for file, shard in zip(files, shards, strict=True):
        assert {name: e.offset for name, e in read_header(file).items()} == dict(shard.offsets)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert found.keys() == made.keys()
    assert [name for name in made if not same(found[name], made[name])] == []


def test_writer_left_early(tmp_path: Path) -> None:
    """A writer left before a tensor is finished leaves nothing: no file, no journal, no directory of its own, nothing changed."""
    specs = {"x": TensorSpec("F32", (4, 2))}
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for out in (tmp_path / "new" / "out", tmp_path / "there"):
        with Writer(out, layout(specs), specs, KEY) as writer:
            writer.write("x", 0, torch.ones(2, 2))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["there", "there/notes.txt"]


def test_writer_that_cannot_finish(tmp_path: Path) -> None:
    """Where a name cannot be given the error is an `OutputError`, and neither shards nor a journal stay."""
    specs = {"x": TensorSpec("F32", (4, 2)), "y": TensorSpec("F32", (4, 2))}
    out = tmp_path / "out"
    obstacle = out / "model-00002-of-00002.safetensors" / "notes.txt"
    with Writer(out, layout(specs, 32), specs, KEY) as writer:
        obstacle.parent.mkdir()
        obstacle.write_text("mine")
        with pytest.raises(OutputError):
            writer.finish()
    assert sorted(out.rglob("*")) == [obstacle.parent, obstacle]


def test_open_descriptors(tmp_path: Path) -> None:
    """A shard has one descriptor, two on a disk, the journal one; all are closed at the end, also of a writer that was left."""
    specs = {name: TensorSpec("F32", (4, 2)) for name in "xyz"}
    (tmp_path / "file").touch()
    each = 1 if (past := past_cache(tmp_path / "file")) < 0 else 2
    if past >= 0:
        os.close(past)
    before = len(os.listdir("/dev/fd"))
    with Writer(tmp_path / "a", layout(specs, 32), specs, KEY):
        assert len(os.listdir("/dev/fd")) == before + 3 * each + 1
    assert len(os.listdir("/dev/fd")) == before
    with Writer(tmp_path / "b", layout(specs, 32), specs, KEY) as writer:
        writer.close(writer.finish())
    assert len(os.listdir("/dev/fd")) == before
