"""One tensor, several names: which name of one model is which of another, when they differ by a prefix or by an old spelling.

Two names are compared from the layer on (`layers.3.mlp.up_proj.weight`), loose ones by their last two words; what stands
before is a pair of prefixes. Where a name could be several, the pair that makes the most tensors fit, with their shapes, wins.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.arch import names
from plait.arch.quirks import SPELLINGS
from plait.types import TensorSpec

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Spelling:
    """`names`: own name -> the reference's; `unclear`: own name -> the reference's names that it could equally be."""

    names: dict[str, str]
    unclear: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def lines(self, ref: object) -> list[str]:
        """The renames in words, those of one kind together: `model.X of M is read as language_model.model.X: 290 tensors`."""
        kinds: defaultdict[tuple[Pair, bool], list[str]] = defaultdict(list)
        for old, new in self.names.items():
            kinds[_kind(old, new)].append(new)
        lines = []
        for ((old, new), front), found in kinds.items():
            if front:
                shared = _shared([name.removeprefix(new) for name in found])
                old, new = f"{old}{shared}X", f"{new}{shared}X"
            lines.append(f"{old} of {ref} is read as {new}: {len(found)} tensor{'s' * (len(found) > 1)}")
        return lines


_OLD = re.compile("|".join(pattern.pattern for pattern, _ in SPELLINGS))


def canonical(name: str) -> str:
    """The name in the spelling of current transformers, where an older one is known."""
    for pattern, now in SPELLINGS if _OLD.search(name) else ():
        name = pattern.sub(now, name)
    return name


def spelt(
    own: Mapping[str, TensorSpec],
    reference: Mapping[str, TensorSpec],
    *,
    modality: frozenset[str] = frozenset(),
    partly: bool = False,
) -> Spelling:
    """What the tensors of `own` that `reference` has not are called there; names without a counterpart are left out.

    A stack of layers is another's only if one has every tensor of the other, and vision is not audio; `partly` waives the former.
    `modality`: what `own` is if its names do not say it (`names.MODALITIES`).
    """
    free: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    stacks: Counter[tuple[str, str]] = Counter()
    for name in reference:
        if name not in own:
            plain = canonical(name)
            free[_end(plain)].append((name, plain))
            stacks["reference", _stack(name)] += 1
    options: dict[str, list[tuple[str, Pair]]] = {}
    claims: defaultdict[Pair, _Claim] = defaultdict(_Claim)
    for name in own:
        if name in reference:
            continue
        plain = canonical(name)
        stacks["own", _stack(name)] += 1
        options[name] = [(other, _pair(plain, theirs)) for other, theirs in free.get(_end(plain), ())]
        for other, pair in options[name]:
            claims[pair].add(name, other, own[name].shape == reference[other].shape)
    good = {pair for pair, claim in claims.items() if claim.fair(pair, stacks, modality, partly)}
    best: defaultdict[str, list[tuple[tuple[int, int], str]]] = defaultdict(list)
    unclear: dict[str, tuple[str, ...]] = {}
    for name, found in options.items():
        fits = [(claims[pair].points, other) for other, pair in found if pair in good]
        most = [other for points, other in fits if points == max(p for p, _ in fits)]
        if len(most) == 1:
            best[most[0]].append((max(p for p, _ in fits), name))
        elif most:
            unclear[name] = tuple(most)
    renames: dict[str, str] = {}
    for other, claimants in best.items():
        top = [name for points, name in claimants if points == max(p for p, _ in claimants)]
        if len(top) == 1:
            renames[top[0]] = other
        else:
            unclear |= dict.fromkeys(top, (other,))
    return Spelling(renames, unclear)


@dataclass
class _Claim:
    """How much speaks for one pair of prefixes."""

    equal: int = 0  # tensors of one shape
    layered: list[tuple[str, str]] = field(default_factory=list)
    loose: int = 0

    def add(self, own: str, other: str, equal: bool) -> None:
        self.equal += equal
        if names.numbered(own):
            self.layered.append((own, other))
        else:
            self.loose += 1

    @property
    def points(self) -> tuple[int, int]:
        return self.equal, len(self.layered) + self.loose

    def fair(self, pair: Pair, stacks: Mapping[tuple[str, str], int], modality: frozenset[str], partly: bool) -> bool:
        one, other = (names.words(prefix) & names.MODALITIES for prefix in pair)
        if (one or modality) != other and one != other:
            return False
        if not self.layered:  # a name outside the layers moves with them, or has words more or less in front
            return _within(*pair)
        own, theirs = (Counter(_stack(n[side]) for n in self.layered) for side in (0, 1))
        whole = all(count == stacks["own", stack] for stack, count in own.items())
        whole = whole or all(count == stacks["reference", stack] for stack, count in theirs.items())
        return partly or whole


def _stack(name: str) -> str:
    numbered = names.numbered(name)
    return numbered[0] if numbered else ""


def _end(name: str) -> str:
    """What two names of one tensor have in common at least."""
    numbered = names.numbered(name)
    if numbered:
        prefix, layer, suffix = numbered
        word = prefix.removesuffix(".").rpartition(".")[2]
        return f"{word}.{layer}.{suffix}"
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1] in ("weight", "bias") else parts[-1:])


def _pair(one: str, other: str) -> Pair:
    """Two names without the words at the end that they share."""
    mine, theirs = one.split("."), other.split(".")
    while mine and theirs and mine[-1] == theirs[-1]:
        mine.pop()
        theirs.pop()
    return ".".join(mine), ".".join(theirs)


def _within(one: str, other: str) -> bool:
    """Whether one prefix is the other with words left out."""
    short, long = sorted((one.split(".") if one else [], other.split(".") if other else []), key=len)
    rest = iter(long)
    return all(word in rest for word in short)


def _kind(old: str, new: str) -> tuple[Pair, bool]:
    """What is told of a rename: (prefixes with their dot, True), or (the words that differ after a layer's number, False)."""
    one, other = _pair(old, new)
    if not re.search(r"(?:^|\.)\d+(?:\.|$)", f"{one}.{other}"):
        return (f"{one}." if one else "", f"{other}." if other else ""), True
    mine, theirs = one.split("."), other.split(".")
    while mine and theirs and mine[0] == theirs[0]:
        del mine[0], theirs[0]
    plain = [".".join("N" if word.isdigit() else word for word in words) for words in (mine, theirs)]
    return (plain[0], plain[1]), False


def _shared(tails: list[str]) -> str:
    """The words that all tails begin with, the last word of a name and numbers left aside, with a dot behind."""
    words = tails[0].split(".")[:-1]
    for tail in tails[1:]:
        theirs = tail.split(".")[:-1]
        words = [a for i, a in enumerate(words) if words[: i + 1] == theirs[: i + 1]]
    return "".join(f"{word}." for word in words[: 1 if len(tails) > 1 else None] if not word.isdigit())
