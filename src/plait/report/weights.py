"""What the weights of a merge say: finite, as large as its parents', near them, with as much of each as was meant.

The bounds were set where the quality of really trained models broke off; docs/report.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import torch

from plait.compute import PIECE
from plait.diff.comparison import Comparison
from plait.diff.measure import Measured
from plait.diff.phrases import count, fixed
from plait.diff.sides import Side
from plait.diff.sums import Sums, add
from plait.diff.verdicts import UNRELATED, Mark, Verdict
from plait.report.layers import Place, lookalikes
from plait.report.origin import Origin

#: a norm beyond the parents' by this factor, up or down, is no merge of them any more …
FAR_OFF = 1.25
#: … for one matrix among many by this …
ODD = 1.5
#: … and by this one is worth a look
OFF = 1.1
#: more of a parent's change than this many times is too much; more than the second is worth a look
TOO_MUCH, MUCH = 1.8, 1.3
#: cosines to the nearest parent: below, a tensor or layer is not from there; below the second, far from all of them
STRANGE, FAR = 0.5, 0.9


def verdicts(origin: Origin, found: Comparison) -> Iterator[Verdict]:
    """All that the weights say. The merge is the last of `found`."""
    name, strange = origin.out.name, _strange(found)
    yield from _finite(found)
    yield from _norms(origin, found)
    yield from _related(origin, found)
    yield from _carried(origin, found, strange)
    yield from _misplaced(origin, found, strange)
    yield from _out_of_order(origin)
    body = matrices(found) or found.total
    angles = [(side.name, body.cosine_between(i, body.models)) for i, side in enumerate(found.sides[:-1])]
    shown = ", ".join(f"{parent} {fixed(cosine, 4)}" for parent, cosine in angles)
    if max(cosine for _, cosine in angles) < FAR:
        yield Verdict(
            "cosine", "note", f"{name} is far from all of its parents", f"cosine of the layers' matrices: {shown}"
        )
    elif not strange:
        yield Verdict("cosine", "good", f"every layer of {name} is near its parents'", f"cosine: {shown}")


def matrices(found: Comparison) -> Sums | None:
    """The matrices of the layers together; of a model without layers all matrices."""
    return found.body or add(m.sums for m in found.tensors if m.pair.columns > 1)


def _finite(found: Comparison) -> Iterator[Verdict]:
    if not found.broken:
        yield Verdict("finite", "good", "every weight is a finite number", f"{count(len(found.tensors), 'tensor')}")
        return
    out = found.sides[-1]
    broken = [(name, _not_numbers(out, name)) for name in found.broken]
    if own := [(name, bad) for name, bad in broken if bad]:
        of = some([f"{name}: {bad} of {_entries(out, name)}" for name, bad in own])
        yield Verdict("finite", "bad", f"NaN or infinity in {count(len(own), 'tensor')} of {out.name}", of)
    for side in found.sides[:-1]:
        if theirs := [name for name in found.broken if _not_numbers(side, name)]:
            says = f"NaN or infinity in {count(len(theirs), 'tensor')} of the parent {side.name}"
            yield Verdict("finite", "note", says, some(theirs))


def _entries(side: Side, name: str) -> int:
    return side.checkpoint.specs[name].numel


def _not_numbers(side: Side, name: str) -> int:
    """How many entries of a tensor are NaN or infinite."""
    rows, columns = side.checkpoint.specs[name].matrix
    step = max(1, PIECE // max(1, columns))
    pieces = (side.checkpoint.read(name, (at, min(at + step, rows))) for at in range(0, rows, step))
    return sum(int(x.numel() - torch.isfinite(x.float()).sum()) for x in pieces)


def growth(s: Sums) -> float | None:
    """How far the merge's norm is beyond its parents': above 1 over the largest, below 1 under the smallest, 1 between them."""
    norms = [s.norm, *(s.size(i) for i in range(s.models - 1))]
    own = s.size(s.models - 1)
    if not max(norms):
        return None
    return own / max(norms) if own > max(norms) else own / min(norms) if own < min(norms) else 1.0


def _norms(origin: Origin, found: Comparison) -> Iterator[Verdict]:
    name, body = origin.out.name, matrices(found) or found.total
    grown = [(m.pair.name, x, m) for m in found.tensors if m.sums.finite and (x := growth(m.sums)) is not None]
    asked = _scaled(origin)
    empty = [name for name, x, _ in grown if x == 0 and name not in asked]
    if zero := [name for name, x, _ in grown if x == 0 and name in asked]:
        says = f"nothing but zeros in {count(len(zero), 'tensor')} of {name}, as the recipe's scale says"
        yield Verdict("norm", "note", says, some(zero))
    if empty:
        yield Verdict(
            "norm",
            "bad",
            f"nothing but zeros in {count(len(empty), 'tensor')} of {name}, and not in its parents",
            some(empty),
        )
    whole = growth(body)
    matrix = [(n, x) for n, x, m in grown if x and m.pair.columns > 1 and n not in asked]
    wrong = [(n, x) for n, x in matrix if not 1 / ODD <= x <= ODD]
    if whole and not 1 / FAR_OFF <= whole <= FAR_OFF:
        says = f"the weights of {name} are {_times(whole)} its parents'"
        yield Verdict("norm", "bad", says, "; ".join(filter(None, ["norm of the layers' matrices", _weights(origin)])))
    elif wrong:
        says = f"the norms of {len(wrong)} matrices of {name} are not between its parents'"
        yield Verdict("norm", "bad", says, some([f"{n}: {_times(x)} theirs" for n, x in wrong]))
    elif whole and not 1 / OFF <= whole <= OFF:
        says = f"the weights of {name} are {_times(whole)} its parents'"
        yield Verdict("norm", "note", says, "; ".join(filter(None, ["norm of the layers' matrices", _weights(origin)])))
    elif whole:
        spread = [x for _, x, m in grown if m.pair.columns > 1] or [whole]
        because = f"norms of matrices: {min(spread):.2f} to {max(spread):.2f} times the nearest parent's"
        yield Verdict("norm", "good", f"{name} has norms like its parents'", because)


def _scaled(origin: Origin) -> set[str]:
    """The tensors that the recipe itself makes larger or smaller (`scale` of passthrough)."""
    steps = origin.plan.steps if origin.plan else ()
    return {s.name for s in steps if any(g.parameter == "scale" and g.scope != "the default" for g in s.settings)}


def _times(factor: float) -> str:
    return f"{factor:.2f} times as large as"


def _weights(origin: Origin) -> str:
    """What the recipe's weights add up to, where they are not divided by their sum."""
    sums = set()
    for step in origin.plan.steps if origin.plan else ():
        given = [g for g in step.settings if g.parameter == "weight" and isinstance(g.value, int | float)]
        if given and not any(g.parameter == "normalize" and g.value for g in step.settings):
            sums.add(round(sum(g.value for g in given), 6))
    if not sums:
        return ""
    low, high = min(sums), max(sums)
    return f"the recipe's weights sum to {low:g}" + (f" up to {high:g}" if high > low else "")


def _related(origin: Origin, found: Comparison) -> Iterator[Verdict]:
    """Parents that have nothing in common, and were mixed all the same."""
    body = matrices(found)
    if body is None or (origin.plan and all(len(list(s.sources())) < 2 for s in origin.plan.steps)):
        return
    for (i, one), (j, other) in combinations(enumerate(found.sides[:-1]), 2):
        cosine = body.cosine_between(i, j)
        if cosine < UNRELATED:
            says = f"{one.name} and {other.name} are unrelated: what is between them is no model"
            yield Verdict("parents", "bad", says, f"cosine of the layers' matrices {fixed(cosine, 4)}")


def _carried(origin: Origin, found: Comparison, strange: dict[Place, float]) -> Iterator[Verdict]:
    """How much of what each parent changed is in the merge."""
    body, first = matrices(found) or found.total, found.sides[0].name
    if not origin.based or not 1 / FAR_OFF <= (growth(body) or 1.0) <= FAR_OFF:
        return
    last, name = body.models, origin.out.name
    carried = [(i, x) for i in range(1, last) if (x := body.carried(i, last)) is not None]
    if not carried:
        return
    known = [(found.sides[i].name, x) for i, x in carried]
    shown = ", ".join(f"{x:.2f} of {parent}'s" for parent, x in known)
    because = f"{name} has of the changes from {first}: {shown}"
    # a parent that went on from another has that one's change already, perhaps several times
    beyond = {i: x / max(body.carried(i, j) or 0.0 for j in range(1, last)) for i, x in carried}
    most, top = max(beyond.items(), key=lambda pair: pair[1])
    if top > MUCH:
        says = f"what {found.sides[most].name} changed is in {name} {dict(carried)[most]:.1f} times"
        mark: Mark = "bad" if top > TOO_MUCH else "note"
        yield Verdict("carried", mark, says, "; ".join(filter(None, [because, _weights(origin)])))
    elif not strange:
        yield Verdict("carried", "good", f"nothing is piled up in {name}", because)
    if lost := [parent for parent, x in known if abs(x) < 0.02]:
        yield Verdict("carried", "note", f"nothing of {' and '.join(lost)} is in {name}", because)
    if undone := [parent for parent, x in known if x <= -0.02]:
        yield Verdict("carried", "note", f"{name} undoes what {' and '.join(undone)} changed", because)


def _strange(found: Comparison) -> dict[Place, float]:
    """Layers, and tensors outside of them, that are not their parents': place -> cosine to the nearest parent."""
    groups: dict[Place, list[Sums]] = {}
    for m in found.tensors:
        if m.pair.columns > 1 and m.sums.finite:
            groups.setdefault(_place(m), []).append(m.sums)
    near = {place: _nearest(sums) for place, group in groups.items() if (sums := add(group))}
    return {place: cosine for place, cosine in near.items() if cosine < STRANGE}


def _place(m: Measured) -> Place:
    return m.module, m.layer if m.layer is not None else m.pair.name


def _nearest(s: Sums) -> float:
    return max(s.cosine_between(i, s.models) for i in range(s.models))


def _misplaced(origin: Origin, found: Comparison, strange: dict[Place, float]) -> Iterator[Verdict]:
    name = origin.out.name
    modules = {module for module, _ in strange}
    layers = [place for place in strange if isinstance(place[1], int)]
    like = lookalikes(found, layers) if layers else {}
    for (module, layer), (parent, other, cosine) in like.items():
        of = f" of {module}" if len(modules) > 1 else ""
        says = f"layer {layer} of {name}{of} is its parents' layer {other}, not layer {layer}"
        because = f"cosine {fixed(cosine, 3)} to {parent}'s layer {other}, {fixed(strange[module, layer], 3)} to layer {layer}"
        yield Verdict("layers", "bad", says, because)
    rest = {place: cosine for place, cosine in strange.items() if place not in like}
    if rest:
        named = some([f"{place} {fixed(cosine, 3)}" for (_, place), cosine in rest.items()])
        what = "layers or tensors" if any(isinstance(place, str) for _, place in rest) else "layers"
        says = f"{len(rest)} {what} of {name} are like none of its parents'"
        yield Verdict("layers", "bad", says, f"cosine to the nearest: {named}")


def _out_of_order(origin: Origin) -> Iterator[Verdict]:
    """Layers that the recipe put before one that they were trained to follow; repeated ones are no fault."""
    from plait.arch.names import numbered

    seen: dict[str, list[int]] = {}
    wrong = []
    for step in origin.plan.steps if origin.plan else ():
        source = next(step.sources())
        parts = numbered(source.name) if step.layer is not None else None
        if not parts or step.layer is None:
            continue
        order = seen.setdefault(step.module, [])
        if len(order) <= step.layer:
            if order and parts[1] < max(order) and parts[1] not in order:
                wrong.append(f"{parts[1]} after {max(order)}")
            order.append(parts[1])
    if wrong:
        says = f"{count(len(wrong), 'layer')} of {origin.out.name} out of order, after later ones of the parents"
        yield Verdict("layers", "bad", says, "the parents' layers: " + some(wrong))


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more."""
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
