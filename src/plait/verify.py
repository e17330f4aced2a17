"""Is a model directory what it was when it was written? Hashes, index, shapes, finiteness, card; one pass over the weights.

What a merge wrote has a hash of each tensor and of each file beside it in its provenance. Of other models the rest is checked.
The hashes find damage, not forgery: who can change the weights can change the provenance too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait import arch
from plait.arch.anatomy import Stack, integers
from plait.checkpoint.directory import SafetensorsFiles, check_index, read_json, weight_files
from plait.checkpoint.header import Extent
from plait.errors import ModelError, PlaitError
from plait.journal import HASH, NAME
from plait.output.card import card, fence, read_facts
from plait.output.hashes import sha256
from plait.output.whole import PROVENANCE, listed
from plait.types import TensorSpec
from plait.vocabulary.read import read_tokens
from plait.writer import PARTIAL

BLOCK = 1 << 22  # bytes that are read at once
INDEX = "model.safetensors.index.json"
#: dtype code -> (numpy's dtype of the bits, mask, whether an equal result means NaN or infinity)
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
#: keys of models whose embedding is not as wide as their layers
_NARROW = ("embedding_size", "input_embedding_size", "word_embed_proj_dim", "hidden_size_per_layer_input")
#: keys of models that run a layer many times (ALBERT, HRM)
_AGAIN = ("num_hidden_groups", "num_layers_per_stack")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Verified:
    """What was found: a sentence for each check, in order, and what is wrong."""

    out: Path
    tensors: int
    nbytes: int
    checks: Mapping[str, str]
    problems: tuple[PlaitError, ...] = field(default=())


def verify(out: str | os.PathLike[str], *, threads: int | None = None) -> Verified:
    """Check the model directory `out`; raises `ModelError` when there are no weights that can be read at all."""
    folder = Path(out).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is no model directory",
            wanted="a folder that `plait merge` wrote, or another model",
            found="a file" if folder.exists() else "nothing",
            do="check the path",
        )
    problems = list(_left_over(folder))
    facts = read_facts(folder) if (folder / PROVENANCE).is_file() else None
    files = weight_files(folder)
    if files[0].suffix != ".safetensors":
        ending = f"a file that ends in {files[0].suffix}"
        do = "verify what plait makes of it: 'merge_method: passthrough' writes safetensors"
        raise ModelError(f"{files[0]} is no safetensors file", wanted="a model in safetensors", found=ending, do=do)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    weights = SafetensorsFiles(files, config)
    checks: dict[str, str] = {}

    def tell(name: str, good: str, found: list[PlaitError]) -> None:
        problems.extend(found)
        checks[name] = good if not found else f"wrong: {len(found)}" if len(found) > 1 else f"wrong: {found[0].what}"

    tell(
        "index",
        f"{len(files)} file{'s' * (len(files) != 1)}, {len(weights.specs)} tensors",
        list(_index(folder, files, weights)),
    )
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        looked = dict(zip(weights.extents, pool.map(_look, weights.extents.values()), strict=True))
    output = facts.get("output", {}) if facts else {}
    hashes = output.get("hashes") if isinstance(output, dict) and output.get("hash") == HASH else None
    if isinstance(hashes, dict):
        found = list(_hashes(folder, hashes, {name: digest for name, (digest, _) in looked.items()}))
        tell("hashes", f"{len(hashes)} tensors have the bytes that were written", found)
    else:
        checks["hashes"] = "not checked: " + ("an older plait kept none" if facts else f"there is no {PROVENANCE}")
    if isinstance(output, dict) and "files" in output:
        files_then = listed(output["files"])
        tell("files", f"{len(files_then)} files beside the weights are as written", list(_files(folder, files_then)))
    bad = [name for name, (_, count) in looked.items() if count]
    allowed = facts is not None and facts.get("options", {}).get("allow_nonfinite") is True
    if bad and allowed:
        checks["finite"] = f"{len(bad)} tensors hold NaN or infinity, as --allow-nonfinite let them: {_few(bad)}"
    else:
        tell("finite", "every value is a number", list(_finite(folder, {name: looked[name][1] for name in bad})))
    if config:
        tell("config", "config.json fits the shapes", list(_config(folder / "config.json", config, weights.specs)))
    else:
        checks["config"] = "not checked: there is no config.json"
    if (folder / "tokenizer.json").is_file():
        tell("tokenizer", "every token has a row", list(_tokenizer(folder, config, weights.specs)))
    if facts is not None:
        tell("card", _about(folder, facts), list(_card(folder, facts)))
    nbytes = sum(spec.nbytes for spec in weights.specs.values())
    return Verified(folder, len(weights.specs), nbytes, checks, tuple(problems))


def _left_over(folder: Path) -> Iterator[PlaitError]:
    left = sorted(path.name for path in (folder / NAME, *folder.glob(f"*{PARTIAL}")) if path.exists())
    if left:
        yield ModelError(
            f"a merge into {folder} has not come to its end",
            wanted="a model that is whole",
            found=_few(left),
            do="run the merge again with --resume",
        )


def _index(folder: Path, files: list[Path], weights: SafetensorsFiles) -> Iterator[PlaitError]:
    """The index says of every tensor where it is, and nothing else is there."""
    path = folder / INDEX
    extra = sorted(file.name for file in folder.glob("*.safetensors") if file not in files)
    if extra:
        yield ModelError(f"{folder} holds weights that are not the model's", found=_few(extra), do="remove them")
    if not path.is_file():
        return
    try:
        check_index(folder, files, weights.specs)
        data = read_json(path)
    except PlaitError as error:
        yield error
        return
    told = data["weight_map"]
    wrong = [name for name, extent in weights.extents.items() if told.get(name) != extent.path.name]
    if wrong:
        yield ModelError(
            f"{path} is not true",
            wanted="for every tensor the file that holds it",
            found=f"another file, or none, for {_few(wrong)}",
            do="make the model again",
        )
    metadata = data.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(spec.nbytes for spec in weights.specs.values())
    if size is not None and size != total:
        wanted, do = f"total_size {total}", "make the model again"
        yield ModelError(f"{path} is not true", wanted=wanted, found=str(size)[:40], do=do)


def _look(extent: Extent) -> tuple[str, int]:
    """The hash of a tensor's bytes, and how many of its values are NaN or infinity."""
    kind = _NOT_FINITE.get(extent.spec.dtype)
    state, bad, at, end = xxhash.xxh3_128(), 0, extent.offset, extent.offset + extent.spec.nbytes
    with open(extent.path, "rb", buffering=0) as file:
        while at < end:
            block = os.pread(file.fileno(), min(BLOCK, end - at), at)
            while len(block) % 8 and at + len(block) < end:  # a read may stop anywhere
                block += os.pread(file.fileno(), 8 - len(block) % 8, at + len(block)) or bytes(8)
            if not block:
                what, do = f"{extent.path} became shorter", "leave the model alone, and verify it again"
                raise ModelError(what, wanted=f"{end} bytes or more", found=f"{at} bytes", do=do)
            state.update(block)
            if kind:
                bits = np.frombuffer(block, kind[0])
                bad += int(np.count_nonzero((bits & bits.dtype.type(kind[1])) == kind[1]))
            at += len(block)
    return state.hexdigest(), bad


def _hashes(folder: Path, then: Mapping[str, Any], now: Mapping[str, str]) -> Iterator[PlaitError]:
    for what, names in (
        ("lacks tensors that were written", [name for name in then if name not in now]),
        ("holds tensors that were not written", [name for name in now if name not in then]),
        (
            "holds tensors with other bytes than were written",
            [name for name in now if then.get(name, now[name]) != now[name]],
        ),
    ):
        if names:
            yield ModelError(
                f"{folder} {what}",
                wanted=f"the hashes in {PROVENANCE}",
                found=f"{len(names)}: {_few(names)}",
                do="copy the model again, or make it again: plait reproduce",
            )


def _files(folder: Path, then: Mapping[str, str]) -> Iterator[PlaitError]:
    gone = [name for name in then if not (folder / name).is_file()]
    other = [name for name in then if name not in gone and sha256(folder / name) != then[name]]
    for what, names in (("lacks files that were written", gone), ("holds files that were changed since", other)):
        if names:
            yield ModelError(
                f"{folder} {what}",
                wanted=f"the files whose SHA-256 are in {PROVENANCE}",
                found=_few(names),
                do="copy them again, or make the model again: plait reproduce",
            )


def _finite(folder: Path, bad: Mapping[str, int]) -> Iterator[PlaitError]:
    if bad:
        yield ModelError(
            f"{folder} holds values that are not numbers",
            wanted="finite values",
            found="NaN or infinity: " + _few([f"{count} in {name}" for name, count in bad.items()]),
            do="look for the cause in its inputs: plait verify them",
        )


def _config(path: Path, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> Iterator[PlaitError]:
    """What config.json says of sizes that the shapes deny."""
    try:
        anatomy = arch.infer(specs, config)
    except PlaitError as error:
        yield error
        return
    text: Mapping[str, Any] = next(
        (p for k in ("text_config", "llm_config") if isinstance(p := config.get(k), dict)), {}
    )
    said = {**config, **text}

    def wrong(key: str, found: object) -> ModelError:
        return ModelError(
            f"{path} does not fit the weights",
            wanted=f"{key}: {found}, as the shapes are",
            found=f"{key}: {said[key]}",
            do="mend it there, or make the model again",
        )

    stacks = [module.stack for module in anatomy.modules if module.stack]
    counts = {stack.count - extra for stack in stacks for extra in {0, stack.extra}}
    counts = counts if said.keys().isdisjoint(_AGAIN) else set()
    for key in _COUNTS:
        if type(said.get(key)) is int and counts and said[key] not in counts:
            yield wrong(key, max(stack.count for stack in stacks))
    embedding = specs.get(anatomy.embedding or "")
    if embedding is not None and len(embedding.shape) == 2 and embedding.dtype in _NOT_FINITE:
        rows, columns = embedding.shape
        sizes = [size for where, size in integers(config) if where[-1] == "vocab_size"]
        if sizes and min(sizes) > rows and type(said.get("vocab_size")) is int:
            yield wrong("vocab_size", rows)
        other = any(key in said for key in _NARROW)
        if type(said.get("hidden_size")) is int and said["hidden_size"] != columns and not other:
            yield wrong("hidden_size", columns)
    if len(stacks) == 1:
        yield from (wrong(key, found) for key, found in _heads(stacks[0], said, specs))
    if said.get("tie_word_embeddings") is False and anatomy.head and anatomy.head not in specs:
        yield wrong("tie_word_embeddings", "true")
    for suffix, key in ((".mlp.gate_proj.weight", "intermediate_size"),):
        found = {
            s.shape[0] for n, s in specs.items() if n.endswith(suffix) and len(s.shape) == 2 and s.dtype in _NOT_FINITE
        }
        if len(found) == 1 and type(said.get(key)) is int and found != {said[key]} and not stacks[1:]:
            yield wrong(key, found.pop())


def _heads(stack: Stack, said: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, object]]:
    """(key, what the shapes say) of attention's keys that do not fit, where every layer has heads of one number and width."""
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    heads, pairs, width = (n if type(n := said.get(name)) is int and n > 0 else 0 for name in names)
    parts = [[specs.get(stack.name(i, f"self_attn.{p}_proj.weight")) for p in "qko"] for i in range(stack.count)]
    plain = [[spec for spec in layer if spec and len(spec.shape) == 2 and spec.dtype in _NOT_FINITE] for layer in parts]
    sizes = {(k.shape[0], o.shape[1]) for _, k, o in (layer for layer in plain if len(layer) == 3)}
    if len(sizes) != 1 or not heads or not pairs or "kv_lora_rank" in said:  # which gives head_dim another meaning
        return
    ((keys, out),) = sizes
    if not width:
        if out * pairs != keys * heads:
            yield names[0], f"{out / keys:g} times {names[1]}"
    elif out % heads == 0 and keys == pairs * (out // heads):
        if width != out // heads:
            yield "head_dim", out // heads
    else:
        for name, given, size in ((names[0], heads, out), (names[1], pairs, keys)):
            if given * width != size:
                yield name, size // width


def _tokenizer(folder: Path, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> Iterator[PlaitError]:
    try:
        tokens = read_tokens(folder)
        embedding = specs.get(arch.infer(specs, config).embedding or "")
    except PlaitError as error:
        yield error
        return
    top = max(tokens.ids.values(), default=-1) if tokens else -1
    if embedding is not None and top >= embedding.shape[0]:
        yield ModelError(
            f"{folder} has tokens without a row",
            wanted=f"ids below {embedding.shape[0]}, the rows of the embedding",
            found=f"id {top}",
            do="a recipe with tokenizer: brings tokens and rows in line",
        )


def _about(folder: Path, facts: Mapping[str, Any]) -> str:
    return "it tells of this merge" if (folder / "README.md").is_file() else "there is none, as was asked"


def _card(folder: Path, facts: Mapping[str, Any]) -> Iterator[PlaitError]:
    """The card is that of the provenance, or one with other words that still tells of its recipe."""
    path = folder / "README.md"
    options = facts.get("options")
    if not path.is_file():
        if not (isinstance(options, dict) and options.get("write_card") is False):
            yield ModelError(
                f"{folder} has no card", wanted="README.md", found="no such file", do=f"plait card {folder}"
            )
        return
    text = path.read_text("utf-8", errors="replace")
    name = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
    scores = folder / "plait_scores.json"
    expected = card(facts, name, scores=read_json(scores) if scores.is_file() else None)
    told = fence(str(facts["recipe"]), "yaml") in text or all(str(m["model"]) in text for m in facts["models"])
    if text != expected and not told:
        yield ModelError(
            f"{path} is the card of something else",
            wanted=f"the recipe or the models of {PROVENANCE}",
            found="other words",
            do=f"plait card --force {folder}",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
