"""What a config.json says about layers, made true for layers that come from other places than they go to.

Each output layer takes what a config says about layers one by one (lists with an entry for each layer, lists of layer numbers,
"the first k layers are dense", "every fourth layer") from the config of its own source. What cannot be said in the config's
own terms is a note for the user.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.arch import names
from plait.arch.anatomy import Module
from plait.arch.quirks import (
    EXTRA_LAYERS,
    FIXED_DEPTH,
    INDICES,
    LAYER_TYPE_KEYS,
    LAYER_TYPES,
    LEADING,
    PER_LAYER,
    PERIODS,
    TRAILING,
    WATCH,
)

#: module name -> for each output layer of its stack: the config of its source, the layer's number there
Chosen = Mapping[str, Sequence[tuple[Mapping[str, Any], int]]]


@dataclass(frozen=True, slots=True)
class _Move:
    """One stack's layers on the way from their sources to the output; `part` is the dict of the config that speaks of them."""

    module: Module
    part: dict[str, Any]  # of the output; mended in place
    #: for each output layer: the same part of its source's config, the layer's number there
    chosen: tuple[tuple[Mapping[str, Any], int], ...]
    count: int  # layers that the base's config counts
    counter: str | None  # the key that counts them
    notes: list[str]
    seen: set[str]  # keys that need no note

    def length(self, part: Mapping[str, Any]) -> int:
        """Layers that a source's config counts."""
        found = part.get(self.counter) if self.counter else None
        return found if isinstance(found, int) else self.count

    @property
    def moved(self) -> bool:
        """Whether some layer has another number than in its source, or the depth changed."""
        layers = [layer for _, layer in self.chosen]
        return layers != list(range(self.module.count))


def mend_layers(
    out: dict[str, Any], module: Module, chosen: Sequence[tuple[Mapping[str, Any], int]], notes: list[str]
) -> None:
    """Make the part of `out` that speaks of this module's layers true to the layers chosen, in place."""
    stack = module.stack
    assert stack
    *path, counter = stack.layer_key or (None,)
    part = part_of(out, path)
    assert isinstance(part, dict)
    parts = tuple((part_of(source, path), layer) for source, layer in chosen)
    move = _Move(module, part, parts, stack.count - stack.extra, counter, notes, set())
    before = copy.deepcopy(part)
    _count(move)
    for rule in (_lists, _indices, _leading, _trailing, _layer_types, _periods, _sparse_step):
        rule(move, before)
    if move.moved:
        _watch(move, before)


def part_of(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The nested dict at a path, or the config itself where it has no such part (a text model's, for a multimodal output)."""
    part: Any = config
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else config


def _count(move: _Move) -> None:
    extra = [layer >= move.length(part) for part, layer in move.chosen]
    counted = extra.count(False)
    stack = move.module.stack
    assert stack
    if stack.extra:
        if any(extra[:counted]):
            move.notes.append(
                "a multi-token prediction layer lies between other layers: only those after the last layer are used"
            )
        for key in EXTRA_LAYERS:
            if key in move.part:
                move.part[key] = len(extra) - counted
                move.seen.add(key)
    if move.counter is None:
        if len(extra) != stack.count and not any(
            _is_list(v, stack.count) for k, v in move.part.items() if PER_LAYER.match(k)
        ):
            move.notes.append(f"config.json has no count of the layers {stack.prefix}*: set it to {counted} by hand")
        return
    old = move.part.get(move.counter)
    move.part[move.counter] = counted
    # encoder-decoder configs repeat the encoder's count, others the only one, under the common name
    if "decoder" not in move.counter and move.part.get("num_hidden_layers") == old and old is not None:
        move.part["num_hidden_layers"] = counted
    move.seen.update({move.counter, "num_hidden_layers"})


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _lists(move: _Move, before: Mapping[str, Any]) -> None:
    """Lists, and strings of one letter a layer, with an entry for each layer."""
    keys = [key for key in before if PER_LAYER.match(key)]
    keys += [key for part, _ in move.chosen for key in part if key not in before and PER_LAYER.match(key)]
    for key in dict.fromkeys(keys):
        if key == "layer_types" or not _ours(move, key):
            continue
        lists = [_entries(part.get(key), move.length(part)) for part, _ in move.chosen]
        old = _entries(before.get(key), move.count)
        if old is None and all(found is None for found in lists):
            continue
        values = [
            found[layer] if found else part.get(key, before.get(key))
            for (part, layer), found in zip(move.chosen, lists, strict=True)
            if not found or layer < len(found)
        ]
        move.part[key] = "".join(map(str, values)) if isinstance(before.get(key), str) else values
        move.seen.add(key)
    if "attention_types" in before and move.part.get("attention_layers") != before.get("attention_layers"):
        move.part["attention_types"] = [[move.part["attention_layers"], 1]]
        move.seen.add("attention_types")


def _entries(value: object, count: int) -> Sequence[Any] | None:
    return value if isinstance(value, (list, str)) and len(value) == count and count else None


def _ours(move: _Move, key: str) -> bool:
    """Whether a key of a config that encoder and decoder share can speak of this stack."""
    stack = move.module.stack
    assert stack
    mine, theirs = names.words(stack.prefix), names.words(key)
    return not (theirs & {"encoder", "decoder"}) or bool(theirs & mine)


def _indices(move: _Move, before: Mapping[str, Any]) -> None:
    """Lists of layer numbers, as lists or as text with commas."""
    for key, value in before.items():
        if not INDICES.match(key) or key in move.seen or not _ours(move, key):
            continue
        if (old := _numbers(value)) is None or any(not 0 <= i < move.count for i in old):
            continue
        found = [k for k, (part, layer) in enumerate(move.chosen) if layer in (_numbers(part.get(key)) or ())]
        move.part[key] = ",".join(map(str, found)) if isinstance(value, str) else found
        move.seen.add(key)
        if "deepstack" in key and len(found) != len(old):
            move.notes.append(
                f"{key} has {len(found)} layers, {len(old)} before: there must be as many deepstack mergers"
            )


def _numbers(value: object) -> list[int] | None:
    if isinstance(value, str) and value and all(piece.strip().isdigit() for piece in value.split(",")):
        return [int(piece) for piece in value.split(",")]
    whole = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    return value if whole and value == sorted(set(value)) else None  # type: ignore[call-overload]


def _leading(move: _Move, before: Mapping[str, Any]) -> None:
    """Counts of the first layers: dense ones, those without a window."""
    for key, explicit in LEADING.items():
        if not isinstance(old := before.get(key), int):
            continue
        flags = [layer < _int(part, key, old) for part, layer in move.chosen]
        k = flags.count(True)
        move.seen.add(key)
        if flags == [i < old for i in range(len(flags))]:
            continue
        if flags == [i < k for i in range(len(flags))]:
            move.part[key] = k
        elif explicit not in move.part and explicit != "layer_types":  # which `_layer_types` writes
            _unsaid(move, key, "the layers that it counts are no longer the first ones")


def _trailing(move: _Move, before: Mapping[str, Any]) -> None:
    for key in TRAILING:
        if not isinstance(old := before.get(key), int):
            continue
        flags = [layer >= move.length(part) - _int(part, key, old) for part, layer in move.chosen]
        k = flags.count(True)
        move.seen.add(key)
        if flags == [i >= len(flags) - k for i in range(len(flags))]:
            move.part[key] = k
        else:
            _unsaid(move, key, "the layers that it counts are no longer the last ones")


def _layer_types(move: _Move, before: Mapping[str, Any]) -> None:
    """Attention types: from the list, or as transformers derives them from the layer's number when the list is absent."""
    wanted = [_layer_type(part, layer) for part, layer in move.chosen if layer < move.length(part)]
    move.seen.update(["layer_types", *LAYER_TYPE_KEYS])
    if all(kind is not None for kind in wanted):
        bare = {key: value for key, value in move.part.items() if key != "layer_types"}
        if "layer_types" in before or wanted != [_layer_type(bare, i) for i in range(len(wanted))]:
            move.part["layer_types"] = wanted
    elif any(kind is not None for kind in wanted) or before.get("layer_types"):
        _unsaid(move, "layer_types", "some of the sources do not say which type their layers have")


def _layer_type(part: Mapping[str, Any], layer: int) -> str | None:
    types = part.get("layer_types")
    if isinstance(types, list):
        return types[layer] if layer < len(types) else None
    rule = LAYER_TYPES.get(str(part.get("model_type")))
    if rule:
        period = next((part[key] for key in rule.keys if isinstance(part.get(key), int)), rule.default)
        return rule.on if period and layer % period == rule.offset % period else rule.off
    if isinstance(first := part.get("max_window_layers"), int):
        window = part.get("use_sliding_window") and part.get("sliding_window")
        return "sliding_attention" if window and layer >= first else "full_attention"
    return None


def _periods(move: _Move, before: Mapping[str, Any]) -> None:
    """Period and offset: another pair that says the same of the output, if there is one; or the list that overrides them."""
    for period, offset in (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset")):
        if not isinstance(p := before.get(period), int) or not isinstance(o := before.get(offset), int):
            continue
        flags = [layer % _int(part, period, p) == _int(part, offset, o) for part, layer in move.chosen]
        pairs = [(p, o), *((q, r) for q in range(1, len(flags) + 2) for r in range(q))]
        fit = next(((q, r) for q, r in pairs if flags == [i % q == r for i in range(len(flags))]), None)
        move.seen.update({period, offset})
        if fit:
            move.part[period], move.part[offset] = fit
        else:
            _unsaid(move, f"{period} and {offset}", "the layers chosen do not alternate regularly")
    for key, explicit in PERIODS.items():
        if not isinstance(old := before.get(key), int) or old < 1:
            continue
        move.seen.update({key, explicit})
        if before.get(explicit):
            continue
        on = [(layer + 1) % _int(part, key, old) == 0 for part, layer in move.chosen]
        if on != [(i + 1) % old == 0 for i in range(len(on))]:
            found = [i for i, hit in enumerate(on) if hit]
            move.part[explicit] = found if explicit == "moe_layers" else [int(not hit) for hit in on]
    if isinstance(before.get("block_types"), list) and before["block_types"]:
        cycles = [part.get("block_types") or before["block_types"] for part, _ in move.chosen]
        kinds = [cycle[layer % len(cycle)] for cycle, (_, layer) in zip(cycles, move.chosen, strict=True)]
        cycle = before["block_types"]
        if kinds != [cycle[i % len(cycle)] for i in range(len(kinds))]:
            move.part["block_types"] = kinds


def _sparse_step(move: _Move, before: Mapping[str, Any]) -> None:
    """Every n-th layer has experts, save those in `mlp_only_layers`: where the period breaks, the list says it all."""
    if not isinstance(old := before.get("decoder_sparse_step"), int):
        return
    move.seen.update({"decoder_sparse_step", "mlp_only_layers"})
    dense = [
        k for k, (part, layer) in enumerate(move.chosen)
        if layer in (part.get("mlp_only_layers") or ()) or (layer + 1) % _int(part, "decoder_sparse_step", old)
    ]  # fmt: skip
    only = move.part.get("mlp_only_layers") or []
    if dense != [i for i in range(len(move.chosen)) if i in only or (i + 1) % old]:
        move.part["decoder_sparse_step"], move.part["mlp_only_layers"] = 1, dense


def _int(part: Mapping[str, Any], key: str, default: int) -> int:
    value = part.get(key)
    return value if isinstance(value, int) else default


def _unsaid(move: _Move, key: str, why: str) -> None:
    move.notes.append(f"{key} in config.json may be wrong: {why}")


def _watch(move: _Move, before: Mapping[str, Any]) -> None:
    for key, value in before.items():
        length = isinstance(value, list) and len(value) == move.count and "layer" in key
        counts = isinstance(value, int) and not isinstance(value, bool) and value > 0 and WATCH.search(key)
        if key not in move.seen and (length or counts) and not names.LAYERS.search(key) and _ours(move, key):
            _unsaid(move, key, f"it is kept as it was ({value}), and the layers have moved")
    stack = move.module.stack
    assert stack
    if len(move.chosen) != stack.count:
        move.notes.extend(
            f"{why}: the depth of this model cannot change" for key, why in FIXED_DEPTH.items() if before.get(key)
        )
    first, rest = stack.layers[0], [set(layer) for layer in stack.layers[1:]]
    if not rest or any(layer != rest[0] for layer in rest):
        return
    odd = [s for s in set(first) ^ rest[0] if names.kind_of(s) not in ("mlp", "expert", "router")]
    if odd and [k for k, (_, layer) in enumerate(move.chosen) if layer == 0] != [0]:
        move.notes.append(
            f"layer 0 of {stack.prefix}* is unlike the others ({min(odd)}): it must be the first layer, and only there"
        )
