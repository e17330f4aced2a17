"""Feed the readers of what strangers write with mutated inputs: each ends in a value or a `PlaitError`, soon, in little memory.

    python tests/fuzz/fuzz.py [--inputs N] [--seed S] [TARGET ...]

Inputs are the files of `seeds/TARGET`, changed: bits, bytes and tokens replaced, cut, doubled, spliced with another seed; in half
of the inputs that are JSON, values instead. The same N and S give the same inputs. What breaks the promise is written to
`found/TARGET-…`; the figures are printed as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from plait.arch import infer
from plait.checkpoint.adapter.settings import settings
from plait.checkpoint.directory import read_json, weight_files
from plait.checkpoint.header import read_header
from plait.errors import PlaitError
from plait.fit import problems
from plait.recipe import kinds
from plait.types import ModelRef, TensorSpec
from plait.vocabulary.read import read_tokens

HERE = Path(__file__).parent
SECONDS = 2.0  # that one input may take
MEGABYTES = 512  # that all of them may add to the process

#: a Llama of two layers
SPECS = {
    "model.embed_tokens.weight": TensorSpec("F32", (16, 8)),
    **{f"model.layers.{i}.mlp.up_proj.weight": TensorSpec("F32", (16, 8)) for i in range(2)},
    "lm_head.weight": TensorSpec("F32", (16, 8)),
}


def recipe(data: bytes, folder: Path) -> None:
    for made in kinds.check(data.decode("utf-8", "surrogateescape") + "\n").recipes:
        problems(made)


def header(data: bytes, folder: Path) -> None:
    read_header(written(folder / "model.safetensors", data))


def index(data: bytes, folder: Path) -> None:
    written(folder / "model.safetensors.index.json", data)
    weight_files(folder)


def reference(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "replace")
    parsed = ModelRef.parse(text)
    assert ModelRef.parse(str(parsed)) == parsed


def config(data: bytes, folder: Path) -> None:
    infer(SPECS, read_json(written(folder / "config.json", data)))


def tokenizer(data: bytes, folder: Path) -> None:
    written(folder / "tokenizer.json", data)
    read_tokens(folder)


def adapter(data: bytes, folder: Path) -> None:
    path = written(folder / "adapter_config.json", data)
    settings(path, read_json(path))


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    f.__name__: f for f in (recipe, header, index, reference, config, tokenizer, adapter)
}

TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\n",
        b" ",
        b"- ",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
    ),
    *(b"null", b"true", b"-1", b"0", b"1e999", b".nan", b"9" * 30, b"1" + b"0" * 400, b"[" * 200, b'{"a":' * 200),
    *(
        b"../",
        b"/",
        b"\0",
        b"\x1b[2J",
        b"\xff",
        b"\xed\xa0\x80",
        b"\\ud800",
        "\u202e".encode(),
        b"@",
        b"+",
        b"%",
        b"{{ x }}",
    ),
    *(
        b'"F32"',
        b'"shape"',
        b'"data_offsets"',
        b"[0, 8]",
        b"18446744073709551616",
        b"9223372036854775807",
        b"filter: ",
        b"value: ",
    ),
    *(
        b"/(a+)+$/",
        b"/(/",
        b"[0, 1]",
        b"models:",
        b"model: ",
        b"merge_method: ",
        b"layer_range: ",
        b"parameters: ",
        b"? ",
        b"| ",
    ),
]


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """A seed with one to eight changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.15)))
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = b""
            case 2:
                data[at:at] = rng.choice(TOKENS)
            case 3:
                data[at:end] = rng.choice(TOKENS)
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 2, 30))
            case 5:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at:end] = other[start : start + 40]
            case 6:
                data[at:end] = rng.randbytes(end - at)
            case _:
                del data[at + rng.randrange(200) :]
    return bytes(data[:20_000])


ODD = [
    None,
    True,
    0,
    -1,
    3.5,
    10**30,
    2**63,
    "",
    "4",
    "\ud800",
    "x\n",
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    [None] * 3,
    [[[[]]]],
]


def revalued(data: bytes, rng: random.Random) -> bytes:
    """JSON, or a header that is JSON, with one to three values or keys replaced; other bytes as they are."""
    length = int.from_bytes(data[:8], "little")
    start, stop = (8, 8 + length) if length <= len(data) - 8 else (0, len(data))
    try:
        tree = json.loads(data[start:stop])
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.randrange(1, 4)):
        node, keys = tree, list[Any]()
        while isinstance(node, dict | list) and node and (not keys or rng.random() < 0.7):
            keys.append(rng.choice(list(node) if isinstance(node, dict) else range(len(node))))
            parent, node = node, node[keys[-1]]
        if not keys:
            break
        if isinstance(parent, dict) and rng.random() < 0.2:
            parent[rng.choice(("", "x", "\u202e", "weight_map", "dtype", "r"))] = parent.pop(keys[-1])
        else:
            parent[keys[-1]] = (
                node + rng.choice((-1, 1, 8))
                if type(node) is int and rng.random() < 0.5
                else copy.deepcopy(rng.choice(ODD))
            )
    text = json.dumps(tree).encode()
    return (len(text).to_bytes(8, "little") if start else b"") + text + data[stop:]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Slow(BaseException):  # nothing that a reader catches
    """An input took longer than it may."""


def _slow(number: int, frame: FrameType | None) -> None:
    raise Slow(f"more than {SECONDS} s")


def fuzz(name: str, inputs: int, seed: int = 0) -> dict[str, object]:
    """Run a target on so many inputs; returns its figures, with what broke the promise."""
    seeds = [path.read_bytes() for path in sorted((HERE / "seeds" / name).iterdir())]
    rng, target = random.Random(f"{name} {seed}"), TARGETS[name]
    refused, broken, slowest = 0, list[tuple[bytes, str]](), 0.0
    before, begun = _megabytes(), time.monotonic()
    signal.signal(signal.SIGALRM, _slow)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        folder = Path(place)
        for shard in (1, 2):
            (folder / f"model-{shard:05d}-of-00002.safetensors").touch()
        for _ in range(inputs):
            data = mutated(seeds, rng) if rng.random() < 0.5 else revalued(rng.choice(seeds), rng)
            start = time.process_time()
            signal.setitimer(signal.ITIMER_REAL, SECONDS * 10)  # of a machine that has other work to do
            try:
                target(data, folder)
            except PlaitError as error:
                refused += 1
                if not str(error).strip():
                    broken.append((data, "an error without words"))
            except (Exception, Slow):
                broken.append((data, traceback.format_exc()))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.process_time() - start
            slowest = max(slowest, took)
            if took > SECONDS:
                broken.append((data, f"{took:.1f} s"))
    grown = _megabytes() - before
    if grown > MEGABYTES:
        broken.append((b"", f"{grown} MB more memory"))
    return {
        "target": name,
        "inputs": inputs,
        "seed": seed,
        "refused": refused,
        "slowest ms": round(1000 * slowest),
        "MB more": grown,
        "seconds": round(time.monotonic() - begun),
        "broken": broken,
    }


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=[])
    words.add_argument("--inputs", type=int, default=150_000, help="for each target")
    words.add_argument("--seed", type=int, default=0)
    chosen = words.parse_args()
    failed = False
    for each in chosen.targets or TARGETS:
        figures = fuzz(each, chosen.inputs, chosen.seed)
        kept: dict[str, bytes] = {}
        for data, why in figures["broken"]:  # type: ignore[attr-defined]
            kept.setdefault(why.strip().splitlines()[-1], data)
        for i, (why, data) in enumerate(kept.items()):
            (HERE / "found").mkdir(exist_ok=True)
            (HERE / "found" / f"{each}-{chosen.seed}-{i}").write_bytes(data)
            print(f"found/{each}-{chosen.seed}-{i}: {why}", file=sys.stderr)
        failed = failed or bool(kept)
        print(json.dumps({**figures, "broken": len(figures["broken"])}), flush=True)  # type: ignore[arg-type]
    sys.exit(failed)
