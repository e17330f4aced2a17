"""Mixtures of experts in one layout: a tensor for each expert, or all of a layer fused into one.

    split    P.experts.3.gate_proj.weight [wide, hidden], up_proj (likewise), down_proj [hidden, wide]; Mixtral: w1, w3, w2
    fused   P.experts.gate_up_proj [experts, 2 wide, hidden], P.experts.down_proj [experts, hidden, wide]
    turned   the same, each matrix transposed: [experts, hidden, 2 wide], [experts, wide, hidden]

A layout is read as another through a view; nothing is copied, and only the rows asked for are read (of a turned one, an
expert at a time). Experts have the number that they have in the file, unless an `order` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.arch import names
from plait.arch.quirks import EXPERTS
from plait.checkpoint import Checkpoint
from plait.checkpoint.pieced import Made, Pieced, Run, Turned
from plait.checkpoint.renamed import Renamed
from plait.errors import PlanError
from plait.types import TensorSpec

LAYOUTS = ("split", "fused")
_ONE = re.compile(r"^(.*\bexperts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
_ALL = re.compile(r"^(.*\bexperts)\.(gate_up_proj|down_proj)$")
_WORDS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


@dataclass(frozen=True, slots=True)
class Layout:
    """How experts are stored: names of (gate, up, down) when split, None when fused; whether fused matrices are turned."""

    words: tuple[str, str, str] | None
    turned: bool = False

    def __str__(self) -> str:
        return "split" if self.words else "turned" if self.turned else "fused"


@dataclass(frozen=True)
class _Group:
    """The experts of one layer: `rows[e]` are where gate, up and down of expert e lie."""

    layout: Layout
    rows: tuple[tuple[Run, Run, Run], ...]
    wide: int
    hidden: int
    dtype: str
    names: tuple[str, ...]  # of the tensors that hold them


def layout_of(specs: Mapping[str, TensorSpec]) -> Layout | None:
    """The layout of the model's experts; None without experts, and for layouts that are not those above."""
    return next((group.layout for _, group in _groups(specs)), None)


def relaid(checkpoint: Checkpoint, layout: Layout, order: Mapping[str, Sequence[int]] | None = None) -> Checkpoint:
    """The checkpoint with its experts in this layout, and routers that go with them.

    `order`: prefix (`model.layers.0.mlp.experts`) -> for each expert of the result its number in the file; other prefixes keep
    theirs. Experts that cannot be fused (of different sizes, with numbers left out, gpt-oss's with biases) stay as they are.
    """
    order = order or {}
    groups = {p: g for p, g in _groups(checkpoint.specs) if g.layout != layout or p in order}
    if not groups:
        return checkpoint
    owner = {name: prefix for prefix, group in groups.items() for name in group.names}
    turned = [name for group in groups.values() if group.layout.turned for name in group.names]
    inner: Checkpoint = Turned(checkpoint, turned) if turned else checkpoint
    tensors: dict[str, Made | None] = {}
    done: set[str] = set()
    for name in checkpoint.specs:
        prefix = owner.get(name)
        if prefix is None:
            tensors[name] = _router(checkpoint.specs, name, order)
        elif prefix not in done:
            done.add(prefix)
            group = groups[prefix]
            chosen = [group.rows[e] for e in order.get(prefix, range(len(group.rows)))]
            tensors |= _made(prefix, group, chosen, layout)
    made: Checkpoint = Pieced(inner, tensors)
    return Turned(made, [f"{p}.{word}" for p in groups for word in _fused_words()]) if layout.turned else made


def wanted(checkpoint: Checkpoint, kind: str, ref: object) -> tuple[Layout, tuple[tuple[str, str], ...]] | None:
    """(layout, renames that go with it) for `--expert-layout`; None for a model without experts.

    Raises `PlanError` where transformers would not read the result.
    """
    now = layout_of(checkpoint.specs)
    if now is None or (kind == "split") == bool(now.words):
        return None
    model_type = _model_type(checkpoint.config)
    if model_type not in EXPERTS:
        raise PlanError(
            f"the experts of {ref} cannot be written {kind}",
            wanted="a model type that transformers reads both ways, such as " + ", ".join(list(EXPERTS)[:6]),
            found=f"{model_type}, with {now} experts",
            do="leave out --expert-layout: the layout of the base is kept",
        )
    words, renames = EXPERTS[model_type]
    if kind == "split":
        return Layout(words), tuple((fused, split) for split, fused in renames)
    return Layout(None), renames


def respelt(checkpoint: Checkpoint, renames: Sequence[tuple[str, str]]) -> Checkpoint:
    """The checkpoint with parts of its names replaced, the first that fits in each."""
    found: dict[str, str] = {}
    for name in checkpoint.specs:
        if hit := next(((old, new) for old, new in renames if old in name), None):
            found[name] = name.replace(*hit)
    return Renamed(checkpoint, found) if found else checkpoint


def _model_type(config: Mapping[str, Any]) -> str:
    part = next((config[k] for k in ("text_config", "llm_config") if isinstance(config.get(k), Mapping)), config)
    return str(part.get("model_type") or config.get("model_type"))


def _fused_words() -> tuple[str, str]:
    return "gate_up_proj", "down_proj"


def _groups(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, _Group]]:
    """(prefix, experts) of each layer that has some, in the order of the file."""
    found: dict[str, dict[tuple[int, str], str]] = {}
    for name in specs:
        if one := _ONE.match(name):
            found.setdefault(one[1], {})[int(one[2]), one[3]] = name
        elif every := _ALL.match(name):
            found.setdefault(every[1], {})[-1, every[2]] = name
    for prefix, members in found.items():
        group = _fused(specs, prefix, members) if (-1, "down_proj") in members else _split(specs, prefix, members)
        if group:
            yield prefix, group


def _fused(specs: Mapping[str, TensorSpec], prefix: str, members: Mapping[tuple[int, str], str]) -> _Group | None:
    if set(members) != {(-1, word) for word in _fused_words()} or f"{prefix}.gate_up_proj_bias" in specs:
        return None  # gpt-oss: gate and up alternate, with biases; no other layout of it is known
    both, down = (specs[members[-1, word]] for word in _fused_words())
    if len(both.shape) != 3 or len(down.shape) != 3 or both.dtype != down.dtype:
        return None
    (count, a, b), (_, c, d) = both.shape, down.shape
    turned = b == 2 * c and a == d
    if not turned and (a != 2 * d or b != c):
        return None
    wide, hidden = (c, d) if turned else (d, c)
    gate_up, name = (members[-1, word] for word in _fused_words())
    rows = tuple(
        (
            Run(gate_up, 2 * e * wide, (2 * e + 1) * wide),
            Run(gate_up, (2 * e + 1) * wide, (2 * e + 2) * wide),
            Run(name, e * hidden, (e + 1) * hidden),
        )
        for e in range(count)
    )
    return _Group(Layout(None, turned), rows, wide, hidden, both.dtype, (gate_up, name))


def _split(specs: Mapping[str, TensorSpec], prefix: str, members: Mapping[tuple[int, str], str]) -> _Group | None:
    words = next((w for w in _WORDS if {word for _, word in members} == set(w)), None)
    if words is None:
        return None
    count = max(e for e, _ in members) + 1
    kinds = {word: {specs[n] for (_, w), n in members.items() if w == word} for word in words}
    if len(members) != 3 * count or any(len(found) > 1 for found in kinds.values()):
        return None
    (gate,), (up,), (down,) = (kinds[word] for word in words)
    if gate != up or len(gate.shape) != 2 or down != TensorSpec(gate.dtype, gate.shape[::-1]):
        return None
    wide, hidden = gate.shape
    rows = tuple(
        (
            Run(members[e, words[0]], 0, wide),
            Run(members[e, words[1]], 0, wide),
            Run(members[e, words[2]], 0, hidden),
        )
        for e in range(count)
    )
    return _Group(Layout(words), rows, wide, hidden, gate.dtype, tuple(members.values()))


def _made(prefix: str, group: _Group, rows: Sequence[tuple[Run, Run, Run]], layout: Layout) -> dict[str, Made]:
    wide, hidden, dtype = group.wide, group.hidden, group.dtype
    if layout.words:
        shapes = ((wide, hidden), (wide, hidden), (hidden, wide))
        return {
            f"{prefix}.{e}.{word}.weight": Made(TensorSpec(dtype, shape), (run,))
            for e, runs in enumerate(rows)
            for word, shape, run in zip(layout.words, shapes, runs, strict=True)
        }
    both, down = (f"{prefix}.{word}" for word in _fused_words())
    return {
        both: Made(
            TensorSpec(dtype, (len(rows), 2 * wide, hidden)), tuple(r for gate, up, _ in rows for r in (gate, up))
        ),
        down: Made(TensorSpec(dtype, (len(rows), hidden, wide)), tuple(down for _, _, down in rows)),
    }


def _router(specs: Mapping[str, TensorSpec], name: str, order: Mapping[str, Sequence[int]]) -> Made | None:
    """A router whose rows follow their experts; None for any other tensor, and where no order is asked for."""
    if not order or names.kind_of(name) != "router":
        return None
    for prefix, numbers in order.items():
        if name.startswith(prefix.removesuffix("experts")) and specs[name].shape[:1] == (len(numbers),):
            return Made(specs[name], tuple(Run(name, e, e + 1) for e in numbers))
    return None
