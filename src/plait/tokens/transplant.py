"""A model with a donor's tokenizer: rows of tokens that both have stay, those of the others are approximated."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from plait.errors import PlanError
from plait.layout import SHARD_SIZE
from plait.lazy import Tensor, torch
from plait.plan import Made, Plan
from plait.prepare import rounding
from plait.tokens.approximate import approximate, check, needs_donor
from plait.tokens.approximate.omp import omp
from plait.tokens.changed import Subject, changed, subject
from plait.tokens.match import Matched, matched
from plait.tokens.pursuit import held_nbytes
from plait.tokens.rows import Settled
from plait.tokens.space import Options, Space
from plait.tokens.undertrained import undertrained
from plait.types import ModelRef
from plait.vocabulary.read import Tokens
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import NONE, Index
from plait.vocabulary.unite import encoded, loaded

SIDES = ("lm_head", "embed", "yes", "no")
PAPER = "https://arxiv.org/abs/2506.06607"


def transplant(
    model: str | os.PathLike[str] | ModelRef,
    donor: str | os.PathLike[str] | ModelRef,
    options: Options | None = None,
    *,
    prefix_match: str = "no",
    byte_match: str = "no",
    magikarp: bool = False,
    pad_to_multiple_of: int = 1,
    shard_size: int = SHARD_SIZE,
    cache: str | os.PathLike[str] | None = None,
    lora_merge_dtype: str | None = None,
) -> Plan:
    """The plan of `model` with the tokenizer of `donor`.

    `prefix_match`, `byte_match`: for which rows ("embed", "lm_head", "yes" for both, "no") a token's longest known beginning
    stands in for it, and byte tokens and the letters that they are stand for each other. `magikarp`: tokens that were hardly
    trained in either model are no measure for others, and those that were in neither become zeros.
    """
    options = options or Options()
    check(options.method)
    for name, side in (("prefix_match", prefix_match), ("byte_match", byte_match)):
        if side not in SIDES:
            do = "choose one of these"
            raise PlanError(f"{name} cannot be {side!r}", wanted=", ".join(SIDES), found=side, do=do)
    code, folder = rounding(lora_merge_dtype), Path(cache) if cache else None
    mine, theirs = subject(model, folder, code), subject(donor, folder, code)
    if options.method == "subword":
        loaded(mine.tokens), loaded(theirs.tokens)  # which raise what would else be found in the middle
    output = theirs.tokens
    rows = -(-output.size // pad_to_multiple_of) * pad_to_multiple_of
    sides = {
        head: _Side(mine, theirs, rows, _on(prefix_match, head), _on(byte_match, head), magikarp, options)
        for head in (False, True)
    }
    if needs_donor(options.method) and not (sides[False].found.exact != NONE).any():
        raise PlanError(
            f"{mine.ref} and {theirs.ref} have no token in common",
            wanted="shared tokens, which the others are approximated by",
            found="none",
            do="use -a subword, mean or john_hewitt",
        )

    def settle(name: str, head: bool, matrix: Matrix) -> Settled:
        return sides[head].rows(name, matrix)

    shared, count = int((sides[False].found.exact != NONE).sum()), len(output.ids)
    note = f"{shared} of the donor's {count} tokens are the model's; {count - shared} rows are made by {options.method}"
    told = {**{f.name: getattr(options, f.name) for f in fields(options)}, "prefix_match": prefix_match}
    told |= {"byte_match": byte_match, "magikarp": magikarp, "pad_to_multiple_of": pad_to_multiple_of}
    return changed(
        mine,
        output,
        rows,
        settle,
        Made("tokens transplant", f"the tokenizer of another model; {note}.", PAPER, _command(mine, theirs, told)),
        donor=theirs,
        asked={"tokens": "transplant", "model": str(mine.ref), "donor": str(theirs.ref), **told},
        seed=options.seed,
        held=_held(mine, theirs, shared, count - shared, options),
        shard_size=shard_size,
        notes=[f"tokens: {note}"],
    )


def _held(mine: Subject, theirs: Subject, shared: int, new: int, options: Options) -> int:
    """Bytes that the rows of one matrix take while they are made."""
    own, donor = (subject.matrix(False).spec.shape[1] for subject in (mine, theirs))
    both = 4 * (shared + new) * (own + donor) if needs_donor(options.method) else 4 * new * own
    return both + (held_nbytes(shared, new, options.k) if options.method == omp.__name__ else 0)


def _on(side: str, head: bool) -> bool:
    return side == "yes" or side == ("lm_head" if head else "embed")


@dataclass(frozen=True)
class _Side:
    """The rows that are read, or those of the head."""

    mine: Subject
    theirs: Subject
    count: int
    prefix: bool
    byte: bool
    magikarp: bool
    options: Options

    @cached_property
    def found(self) -> Matched:
        return matched(
            self.theirs.tokens, self.mine.tokens, self.mine.held, self.count, byte=self.byte, prefix=self.prefix
        )

    def rows(self, name: str, own: Matrix) -> Settled:
        """Which rows of the model the output's are, and what makes the others."""
        head, found = name == self.mine.model.arch.head, self.found
        donor = self.theirs.matrix(head)
        exact, zeros = found.exact.copy(), np.zeros(self.count, bool)
        if self.magikarp:
            weak, theirs = undertrained(own), undertrained(donor)
            ids = np.flatnonzero(exact != NONE)
            zeros[ids[weak[exact[ids]] & theirs[ids]]] = True
            exact[ids[weak[exact[ids]] | theirs[ids]]] = NONE
        row = np.where(exact != NONE, exact, np.where(zeros, NONE, found.lent))
        isa = np.zeros(self.count, bool)
        isa[np.fromiter(self.theirs.tokens.ids.values(), np.int64)] = True
        wanted, anchors = np.flatnonzero((row == NONE) & ~zeros & isa), np.flatnonzero(exact != NONE)
        space = Space(
            name, head, own, donor, exact[anchors], anchors, wanted, lambda: self._pieces(wanted), self.options
        )

        def make() -> Tensor:
            lacking = np.flatnonzero(row == NONE)
            out = torch.zeros((len(lacking), own.spec.shape[1]))
            if len(wanted):
                out[torch.from_numpy(np.searchsorted(lacking, wanted))] = approximate(space)
            if len(padding := np.flatnonzero(~isa[lacking])):
                out[torch.from_numpy(padding)] = space.mean().float()
            return out

        return row, make

    def _pieces(self, wanted: Index) -> Sequence[Sequence[int]]:
        """The donor's tokens as tokens of the model."""
        return pieces(self.mine.tokens, self.theirs.tokens, wanted)


def pieces(own: Tokens, donor: Tokens, wanted: Index) -> list[list[int]]:
    """The text of each of the donor's tokens as ids of the model's tokenizer."""
    speaker = loaded(donor)
    texts = {n: text for text, n in donor.ids.items()}
    said = []
    for n in wanted.tolist():
        text = texts[n]
        if text in donor.added:
            said.append(text)
        else:
            spoken = speaker.decode([n], skip_special_tokens=False)
            said.append((" " if text[:1] in "▁Ġ" and not spoken.startswith(" ") else "") + spoken)
    return [list(e.ids) for e in encoded(own, said)]


def _command(mine: Subject, theirs: Subject, told: dict[str, object]) -> str:
    flags = {
        "method": "-a",
        "k": "-k",
        "weight_scheme": "-w",
        "subword_method": "-s",
        "noise": "-nvn",
        "scale": "-nvs",
        "seed": "--random-seed",
        "prefix_match": "-pm",
        "byte_match": "-bm",
        "pad_to_multiple_of": "--pad-to-multiple-of",
    }
    words = ["plait", "tokens", "transplant", str(mine.ref), str(theirs.ref), "OUT"]
    for key, flag in flags.items():
        words += [flag, str(told[key])]
    words += ["-c"] * bool(told["cosine_similarity"]) + ["--magikarp"] * bool(told["magikarp"])
    return shlex.join(words)
