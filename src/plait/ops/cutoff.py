"""The k largest magnitudes of a tensor, exactly, without sorting it.

The bits of a non-negative float32, read as an integer, are ordered like the number. A histogram of the upper 15 bits finds the
bin with the k-th largest magnitude, a second one of the lower 16 bits finds its exact value. Entries equal to it are kept in
the order of their numbers until there are k, so the choice does not depend on how the tensor was cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from plait import kernels
from plait.kernels.fused import Raw
from plait.lazy import Tensor, torch
from plait.ops import brackets
from plait.ops.pieces import Piece, Pieces

_LOW = 16  # bits of the second histogram
_BINS = 1 << _LOW
_SMALL = 1 << 12  # entries, less than a block

#: which tensors of a piece are measured: shapes of the models, any values
Of = Callable[[Piece], list[Tensor]]


@dataclass(frozen=True)
class Cutoff:
    """Keep the entries whose magnitude exceeds `value`, and those equal to `value` with a number below `stop`."""

    value: float
    stop: int

    def mask(self, x: Tensor, start: int) -> Tensor:
        """1 where an entry is kept, 0 elsewhere, float32; `x` is a piece whose first entry has the number `start`."""
        kept = x.float().abs().reshape(-1)
        equals = min(max(self.stop - start, 0), len(kept))
        kept[:equals].ge_(self.value)  # in place, because comparisons that make booleans are several times slower
        kept[equals:].gt_(self.value)
        return kept.reshape(x.shape)

    def keep(self, x: Tensor, start: int) -> Tensor:
        """`x` with zeros where an entry is not kept; `x` itself where everything is."""
        if self == EVERYTHING:
            return x
        if isinstance(x, Raw):
            return cast(Tensor, x.keep(self.value, 0))
        if kernels.suit(x):
            return kernels.keep(x, min(max(self.stop - start, 0), x.numel()), self.value)
        return x * self.mask(x, start)

    def cut(self, x: Tensor, start: int) -> Tensor:
        """`x` with zeros where an entry is kept; `x` itself where nothing is."""
        if self == NOTHING:
            return x
        return x * 0.0 if self == EVERYTHING else x * (1 - self.mask(x, start))


@dataclass(frozen=True)
class Threshold:
    """The same for `Raw` pieces that are gone through in order: `count` is how many entries equal to `value` are kept."""

    value: float
    count: int

    def keep(self, x: Tensor, start: int) -> Tensor:
        return cast(Tensor, cast(Raw, x).keep(self.value, self.count))

    def cut(self, x: Tensor, start: int) -> Tensor:
        return cast(Tensor, cast(Raw, x).cut(self.value, self.count))


EVERYTHING = Cutoff(-1.0, 0)
NOTHING = Cutoff(math.inf, 0)


def cutoffs(pieces: Pieces, keep: Sequence[int], of: Of = lambda piece: piece.models) -> Sequence[Cutoff | Threshold]:
    """For each tensor of `of(piece)` the `Cutoff` that keeps its keep[i] largest magnitudes over the whole tensor.

    `keep` may be longer than the list of tensors: it then starts over with the first, so that one tensor can have several
    cutoffs. `pieces` is gone through up to three times, and not at all where everything or nothing is kept. Works on the
    float32 value of each entry. Of a `Chain`, all entries equal to the cut are kept: places in it are no order.
    """
    ranks = {i: k for i, k in enumerate(keep) if 0 < k < pieces.entries}
    found: Mapping[int, Cutoff | Threshold]
    if models := pieces.raw:
        wanted = {i: brackets.Wanted(i % models, k) for i, k in ranks.items()}
        found = {i: Threshold(*place) for i, place in brackets.search(pieces, wanted).items() if place}
    else:
        found = _search(pieces, ranks, of, ties=not isinstance(pieces, Chain))
    return [found.get(i, NOTHING if k <= 0 else EVERYTHING) for i, k in enumerate(keep)]


def order_statistics(pieces: Pieces, positions: Sequence[int], of: Callable[[Piece], Tensor]) -> list[float]:
    """The magnitudes of `of(piece)` over the whole tensor that have these positions, from 0, in ascending order."""
    ranks = {i: pieces.entries - position for i, position in enumerate(positions)}
    found = _search(pieces, ranks, lambda piece: [of(piece)], ties=False)
    return [found[i].value for i in range(len(positions))]


def model_cutoffs(tensors: Sequence[Pieces], density: Sequence[float]) -> Sequence[Cutoff | Threshold]:
    """For each model the `Cutoff` that keeps the density[i] share of largest magnitudes over all tensors together.

    All entries equal to the cut are kept. Goes through every tensor up to twice.
    """
    whole = Chain(tensors)
    return cutoffs(whole, [max(1, math.floor(d * whole.entries)) if d > 0 else 0 for d in density])


@dataclass(frozen=True)
class Chain:
    """The pieces of several tensors, one tensor after the other."""

    tensors: Sequence[Pieces]

    @property
    def entries(self) -> int:
        return sum(pieces.entries for pieces in self.tensors)

    @property
    def survey(self) -> None:
        return None

    @property
    def raw(self) -> int:
        return 0

    def sample(self) -> list[tuple[int, int]]:
        return []

    def at(self, row: int, stop: int) -> Piece:
        raise NotImplementedError("rows of which tensor?")

    def __iter__(self) -> Iterator[Piece]:
        return itertools.chain.from_iterable(self.tensors)


def _search(pieces: Pieces, ranks: dict[int, int], of: Of, ties: bool = True) -> dict[int, Cutoff]:
    """The cutoffs for ranks (k-th largest, from 1); the key of a rank modulo the number of tensors is its tensor."""
    if not ranks:
        return {}
    if pieces.entries <= _SMALL:
        return _sorted(pieces, ranks, of, ties)
    high: dict[int, Tensor] = {}
    for piece in pieces:
        tensors = of(piece)
        for i in {i % len(tensors) for i in ranks}:
            if i not in high:
                high[i] = torch.zeros(1 << 15, dtype=torch.int64, device=tensors[i].device)
            if kernels.suit(tensors[i]):
                kernels.high(tensors[i], high[i])
            else:
                high[i] += torch.bincount(_bits(tensors[i]).bitwise_right_shift_(_LOW), minlength=1 << 15)
    number = len(tensors)
    bins = {i: _locate(high[i % number], k) for i, k in ranks.items()}

    low = {i: torch.zeros(_BINS, dtype=torch.int64, device=tensors[0].device) for i in ranks}
    for piece in pieces:
        tensors = of(piece)
        for i in ranks:
            x = tensors[i % number]
            if kernels.suit(x):
                kernels.low(x, bins[i][0], low[i])
                continue
            bits = _bits(x)
            inside = torch.eq(bits >> _LOW, bins[i][0], out=torch.empty_like(bits)).float().nonzero().reshape(-1)
            low[i] += torch.bincount(bits[inside] & (_BINS - 1), minlength=_BINS)
    values, left, stops = {}, {}, {}
    for i, k in ranks.items():
        bin_, above = bins[i]
        value, more = _locate(low[i], k - above)
        values[i] = torch.tensor((bin_ << _LOW) | value, dtype=torch.int32).view(torch.float32).item()
        left[i] = k - above - more  # entries at the cutoff that are to be kept
        if int(low[i][value]) == left[i] or not ties:
            stops[i] = pieces.entries
    if len(stops) < len(ranks):
        for piece in pieces:
            tensors = of(piece)
            for i in [i for i in ranks if i not in stops]:
                x = tensors[i % number]
                count = kernels.count(x, values[i]) if kernels.suit(x) else int(_equal(x, values[i]).sum())
                if count >= left[i]:
                    stops[i] = piece.start + int(_equal(x, values[i]).nonzero()[left[i] - 1]) + 1
                left[i] -= count
            if len(stops) == len(ranks):
                break
    return {i: Cutoff(values[i], stops[i]) for i in ranks}


def _sorted(pieces: Pieces, ranks: dict[int, int], of: Of, ties: bool) -> dict[int, Cutoff]:
    """The same for a tensor so small that sorting it is quicker than emptying the histograms."""
    found = {}
    tensors = [[x.reshape(-1) for x in of(piece)] for piece in pieces]
    for i in ranks:
        bits = _bits(torch.cat([parts[i % len(parts)] for parts in tensors]))
        ordered, entries = bits.sort(descending=True, stable=True)
        last = ranks[i] - 1
        stop = int(entries[last]) + 1 if ties else pieces.entries
        found[i] = Cutoff(ordered[last].view(torch.float32).item(), stop)
    return found


def _equal(x: Tensor, value: float) -> Tensor:
    """Where the magnitude is `value`, bool `[entries]`."""
    return x.float().abs().reshape(-1) == value


def _bits(x: Tensor) -> Tensor:
    """The magnitudes' bits, int32 `[entries]`, ordered like the magnitudes; the caller's own."""
    return x.float().contiguous().view(torch.int32).reshape(-1) & 0x7FFFFFFF


def _locate(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest entry (k from 1), and how many entries lie in the bins above it."""
    above = histogram.flip(0).cumsum(0).flip(0)  # entries in this bin and above
    bin_ = int((above >= k).sum()) - 1
    return bin_, int(above[bin_] - histogram[bin_])
