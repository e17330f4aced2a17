"""What the numbers say: which model is the base, what was done to it, whether a merge has a chance. Each with its evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plait.diff.comparison import Comparison
from plait.diff.measure import Measured
from plait.diff.phrases import fixed, percent
from plait.diff.spectrum import SKETCH
from plait.diff.vocabulary import WordsDiffer
from plait.types import DTYPES

#: cosines of the layers' matrices: from here on weights are of one training …
NEAR = 0.98
#: … of one training that went on for long …
FAR = 0.7
#: … and below this, of two that began from different random numbers
UNRELATED = 0.1

Mark = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Verdict:
    """One sentence, what it is about, whether it speaks for merging, and the numbers behind it."""

    about: str  # base, lora, dtype, same, merging, conflict, vocabulary, settings, tensors
    mark: Mark
    says: str
    because: str


def verdicts(found: Comparison, apart: tuple[WordsDiffer, ...]) -> tuple[Verdict, ...]:
    """All verdicts, the most important first. `apart`: how each model but the first differs in its words."""
    first, base = _base(found, apart)
    said = [*_tensors(found), *_relations(found), *base, *_made(found), *(_conflict(found) if first else ())]
    said += _vocabulary(found, apart)
    return tuple(sorted(said, key=lambda v: ("bad", "good", "note").index(v.mark)))


def _tensors(found: Comparison) -> Iterator[Verdict]:
    if broken := found.broken:
        yield Verdict("tensors", "bad", f"{len(broken)} tensors have NaN or infinity", _some(broken))
    if shapes := found.pairing.shapes:
        name, known = next(iter(shapes.items()))
        shown = ", ".join(f"{s.name} {list(x)}" for s, x in zip(found.sides, known, strict=True))
        yield Verdict("tensors", "bad", f"{len(shapes)} tensors differ in shape: not one size", f"{name}: {shown}")
    for side, names in zip(found.sides, found.pairing.lacking, strict=True):
        missing = [n for n in names if n not in side.arch.tied and n not in side.arch.buffers]
        tied = [n for n in names if n in side.arch.tied]
        if missing:
            yield Verdict(
                "tensors", "bad", f"{side.name} lacks {len(missing)} tensors that another has", _some(missing)
            )
        if tied:
            says = f"{side.name} has no {_some(tied)} of its own: it is tied to the embedding"
            yield Verdict("tensors", "note", says, "its config, and no such tensor in its files")
    for note in (note for side in found.sides for note in side.notes):
        yield Verdict("tensors", "note", note, "the same tensors under other names")
    cut = [p for p in found.pairing.pairs if not p.whole]
    if cut:
        because = f"the first {min(p.rows for p in cut)} rows of {_some([p.name for p in cut])} are compared"
        yield Verdict("vocabulary", "bad", "the vocabularies differ in length", because)


def _relations(found: Comparison) -> Iterator[Verdict]:
    """How the first model and each other are related; models of which the same is true in one sentence."""
    body, first = found.body or found.total, found.sides[0].name
    groups: dict[tuple[str, Mark, str], list[tuple[str, str]]] = {}
    for i, side in enumerate(found.sides[1:]):
        cosine = body.cosine(i)
        because = f"cosine {cosine:.4f}, change {percent(body.change(i))}"
        if not found.total.change(i):
            how: tuple[str, Mark, str] = ("same", "note", f"the same weights as {first}")
            because = "all shared tensors are equal"
        elif found.total.rounded[i] == found.total.entries:
            how = ("dtype", "note", f"{first} in another dtype")
            because = f"{_dtypes(found, i + 1)} instead of {_dtypes(found, 0)}, every entry rounded"
        elif cosine >= NEAR:
            how = ("merging", "good", f"worth merging with {first}, weights of one training")
        elif cosine >= FAR:
            how = ("merging", "note", f"far from {first}, as after long further training: a merge may lose much")
        elif cosine >= UNRELATED:
            how = ("merging", "bad", f"little in common with {first}: merging entry by entry will lose most of both")
        else:
            how = ("merging", "bad", f"unrelated to {first}, from different random weights: not worth merging")
        groups.setdefault(how, []).append((side.name, because))
    for (about, mark, says), group in groups.items():
        names, reasons = zip(*group, strict=True)
        each = reasons[:1] if len(group) == 1 else tuple(f"{name}: {why}" for name, why in group)
        of = " (matrices of the layers)" if about == "merging" else ""
        yield Verdict(about, mark, f"{_all(names)}: {says}", "; ".join(each) + of)


def _base(found: Comparison, apart: tuple[WordsDiffer, ...]) -> tuple[bool, list[Verdict]]:
    """Which model the others were trained from; and whether it may be the first."""
    total, sides = found.total, found.sides
    near = [i for i in range(total.models) if total.change(i) and (found.body or total).cosine(i) >= NEAR]
    if len(sides) == 2 and near:
        hints = list(_hints(found, apart[0]))
        says = f"{sides[0].name} can be the base of {sides[1].name}, or the other way round: weights do not tell which"
        if hints:
            says = f"{sides[0].name} is likely the base of {sides[1].name}"
        because = f"{percent(total.unchanged(0))} of the entries are equal, the change is {percent(total.change(0))}"
        return True, [Verdict("base", "note", says, "; ".join([because, *hints]))]
    if len(sides) < 3 or len(near) < len(sides) - 1:
        return True, []
    away = [[total.distance(i, j) for j in range(len(sides))] for i in range(len(sides))]
    guess = min(range(len(sides)), key=lambda i: sum(away[i]))
    name, others = sides[guess].name, [i for i in range(len(sides)) if i != guess]
    angles = [_angle(away, guess, i, j) for i in others for j in others if i < j]
    shown = dict.fromkeys(fixed(angle, 2) for angle in (min(angles), max(angles)))
    because = f"cosine of the others' deltas from it: {' to '.join(shown)}"
    sure = False
    if min(angles) < -0.3:
        says = f"{name} lies between the others: a merge of them, or trained from one"
    elif guess == 0 and max(angles) < 0.5:
        says = f"{name} is the base of the others"
    elif max(angles) < 0.2:
        says = f"{name} is the base of the others, or in the middle of a chain of trainings: name it first"
        sure = True
    elif min(angles) > 0.35 and max(angles) < 0.65:
        says = "none of them is the base of the others: they are equally far from each other"
    else:
        says = f"{name} is nearest to all others: their base, or one in a chain of trainings"
    return guess == 0 or not sure, [Verdict("base", "note", says, because)]


def _angle(away: Sequence[Sequence[float]], at: int, i: int, j: int) -> float:
    """Cosine of the angle at one model between two others, from distances."""
    a, b = away[at][i], away[at][j]
    return (a * a + b * b - away[i][j] ** 2) / (2 * a * b) if a and b else 1.0


def _hints(found: Comparison, words: WordsDiffer) -> Iterator[str]:
    first, other = found.sides
    if words.template == "only in the other":
        yield f"only {other.name} has a chat template"
    if words.tokens and words.tokens[3] and not any(words.tokens[1:3]):
        yield f"{other.name} has {words.tokens[3]} more tokens"
    card = other.folder / "README.md" if other.folder else None
    if card and card.is_file():
        head = card.read_text("utf-8", errors="replace")[:4000].split("\n---")[0]
        parent = re.escape(first.called.rstrip("/").split("/")[-1])
        if re.search(rf"^base_model:(?:\s|-|\S*/)*{parent}\s*$", head, flags=re.M):
            yield f"the card of {other.name} names it"


def _made(found: Comparison) -> Iterator[Verdict]:
    """How each model was made from the first: an adapter merged in, or parts that were left alone."""
    frozen: dict[str, list[str]] = {}
    for i, side in enumerate(found.sides[1:]):
        moved = [m for m in found.tensors if m.sums.finite and m.sums.change(i)]
        if not moved or found.total.rounded[i] == found.total.entries:
            continue
        if all(_low_rank(m, i) for m in moved):
            ranks = sorted({spectrum.directions for m in moved if (spectrum := m.spectra[i])})
            rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            modules = dict.fromkeys(m.pair.name.removesuffix(".weight").split(".")[-1] for m in moved)
            says = f"{side.name} is {found.sides[0].name} with a LoRA of rank {rank} in {', '.join(modules)}"
            because = f"{len(moved)} tensors changed, each by a matrix of that rank and rounding; the others are equal"
            yield Verdict("lora", "note", says, because)
        elif kept := [kind for kind, sums in found.kinds.items() if not sums.change(i)]:
            frozen.setdefault(" and ".join(kept), []).append(side.name)
    for kinds, names in frozen.items():
        says = f"the {kinds} tensors of {_all(names)} are those of {found.sides[0].name}"
        yield Verdict("tensors", "note", says, "frozen in training, or put back")


def _low_rank(m: Measured, i: int) -> bool:
    """Whether a delta is a matrix of low rank and the rounding of the sum."""
    s = m.spectra[i]
    if s is None or (s.sketched and s.directions > SKETCH // 2):
        return False
    low = 0 < s.directions <= min(m.pair.rows, m.pair.columns) // 2
    return low and s.explained >= 0.5 and 1 - s.explained <= 3 * s.noise + 1e-6


def _conflict(found: Comparison) -> Iterator[Verdict]:
    """What the deltas do to each other; with one delta there is nothing to say."""
    total, names = found.total, [side.name for side in found.sides[1:]]
    for i in range(total.models):
        for j in range(i):
            cosine = total.delta_cosine(i, j)
            if cosine is None:
                continue
            agree = total.sign_agreement(i, j)
            because = f"cosine of their deltas {fixed(cosine, 2)}" + (
                f", signs agree in {percent(agree)}" if agree else ""
            )
            if cosine > 0.8:
                says = f"{names[j]} and {names[i]} changed nearly the same: merging them adds little"
                yield Verdict("conflict", "note", says, because)
            elif cosine < -0.2:
                says = f"{names[j]} and {names[i]} pull against each other: expect a merge to lose"
                yield Verdict("conflict", "bad", says, because)
    share = total.conflict_share()
    if share is not None:
        says = f"signs of the deltas differ in {percent(share)} of the entries that two or more models change"
        yield Verdict("conflict", "note", says, "chance alone gives up to " + percent(1 - 2.0 ** (1 - total.models)))


def _vocabulary(found: Comparison, apart: tuple[WordsDiffer, ...]) -> Iterator[Verdict]:
    first = found.sides[0].name
    for side, d in zip(found.sides[1:], apart, strict=True):
        if d.tokens and d.tokens[1]:
            says = f"{d.tokens[1]} tokens of {side.name} have other ids than in {first}: their rows mean something else"
            yield Verdict("vocabulary", "bad", says, _counts(d.tokens))
        elif d.tokens and not d.same_tokens:
            yield Verdict("vocabulary", "note", f"{side.name} and {first} have different tokens", _counts(d.tokens))
        if not d.cutting:
            says = f"{side.name} cuts text in another way than {first}"
            yield Verdict("vocabulary", "bad", says, "merges, normaliser or pre-tokeniser differ in tokenizer.json")
        if d.template not in ("same", "neither"):
            yield Verdict(
                "vocabulary", "note", f"chat template of {side.name} and {first}: {d.template}", "a merge has one"
            )
        for key, (a, b) in d.special.items():
            says = f"{key} is {a or 'none'} in {first} and {b or 'none'} in {side.name}"
            yield Verdict("vocabulary", "note", says, "tokenizer_config.json")
        for key, (a, b) in d.settings.items():
            says = f"{key} is {a} in {first} and {b} in {side.name}"
            yield Verdict("settings", "bad", says, "the same weights compute something else with it")


def _counts(tokens: tuple[int, int, int, int]) -> str:
    same, moved, first, other = tokens
    return f"{same} with the same id, {moved} with another, {first} only in the first, {other} only in the other"


def _dtypes(found: Comparison, side: int) -> str:
    return "/".join(dict.fromkeys(DTYPES[p.dtypes[side]].name for p in found.pairing.pairs))


def _all(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
