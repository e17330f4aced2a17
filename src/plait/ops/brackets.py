"""The k-th largest magnitude of `Raw` pieces, exactly, mostly in one pass.

A sample says in which narrow bracket of magnitudes it lies. A pass counts what lies above the bracket, and each single value
inside of it; if the sample was wrong, a histogram over all values brackets it anew. A float's bits, without the sign, are
ordered like its magnitude.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from plait.kernels import fused
from plait.ops.pieces import Piece, Pieces, stored

_WHOLE = 1 << 18  # entries of a tensor that is looked at as a whole
_BINS = 19  # bits: at most so many values are told apart in one pass
_ALL, _HALF = 1 << 31, 16  # all magnitudes; what is left out of their bits in a first histogram
_FINE = 15  # the same of a sample's: bins of 0.4 %
_SURE = 5  # standard errors of a sample's rank


@dataclass(frozen=True)
class Wanted:
    """Of which input (-1: of the variance over all), and which rank, from 1, given how many entries are not 0."""

    input: int
    rank: int | Callable[[int], int]

    def given(self, some: int) -> int:
        return self.rank if isinstance(self.rank, int) else self.rank(some)


#: the magnitude at a rank, and how many entries of that magnitude have that rank or a higher one; None for a rank below 1
Place = tuple[float, int] | None


@dataclass(frozen=True)
class _Bracket:
    low: int
    span: int
    shift: int

    @property
    def bins(self) -> int:
        return -(-self.span >> self.shift)


def search(pieces: Pieces, wanted: Mapping[int, Wanted]) -> dict[int, Place]:
    """The place of each rank, under its key."""
    if pieces.entries <= _WHOLE:
        return _whole(pieces, wanted) if wanted else {}
    open_ = _guess(pieces, wanted) if wanted else {}
    found: dict[int, Place] = {}
    while open_:
        counted, missed = _count(pieces, wanted, open_), {}
        for (i, own), c in zip(open_.items(), counted, strict=True):
            k = wanted[i].given(pieces.entries - c.zeros)
            bin_, above = fused.locate(c.counts, own.bins, k - c.above) if k > c.above else (-1, 0)
            if k <= 0:
                found[i] = None
            elif bin_ < 0:
                missed[i] = _Bracket(0, _ALL, _HALF)
            elif own.shift:
                missed[i] = _Bracket(own.low + (bin_ << own.shift), 1 << own.shift, 0)
            else:
                found[i] = (_magnitude(own.low + bin_), k - c.above - above)
        open_ = missed
    return found


def _count(pieces: Pieces, wanted: Mapping[int, Wanted], open_: Mapping[int, _Bracket]) -> ctypes.Array[fused.Bracket]:
    counted = (fused.Bracket * len(open_))()
    for c, (i, own) in zip(counted, open_.items(), strict=True):
        counts = fused.buffer(f"counts {i}", 4 * own.bins)
        ctypes.memset(counts.address, 0, 4 * own.bins)
        c.counts, c.input = counts.address, wanted[i].input
        c.low, c.span, c.shift = own.low, own.span, own.shift
    for piece in pieces:
        fused.select(stored(piece.models) or [], counted)
    return counted


def _whole(pieces: Pieces, wanted: Mapping[int, Wanted]) -> dict[int, Place]:
    """The same for a tensor whose magnitudes fit into the cache."""
    n = pieces.entries
    found: dict[int, Place] = {}
    bits = _magnitudes(pieces, wanted, n, ((piece.start, piece) for piece in pieces))
    for i, w in wanted.items():
        k = w.given(sum(fused.at_least(bits[w.input], 1, n, 1)))
        value, above = fused.largest(bits[w.input], n, k) if k > 0 else (0, 0)
        found[i] = (_magnitude(value), k - above) if k > 0 else None
    return found


def _magnitudes(
    pieces: Pieces, wanted: Mapping[int, Wanted], n: int, parts: Iterable[tuple[int, Piece]]
) -> dict[int, int]:
    """Where the bits of the magnitudes of each input lie, n in all; `parts` are pieces and the places of their first entries."""
    apart = any(w.input < 0 for w in wanted.values())
    count = 1 if apart else pieces.raw
    out = fused.buffer("magnitudes", 4 * n * count).address
    for place, piece in parts:
        fused.magnitudes(stored(piece.models) or [], apart, out + 4 * place, n)
    return {-1: out} if apart else {j: out + 4 * n * j for j in range(count)}


def _guess(pieces: Pieces, wanted: Mapping[int, Wanted]) -> dict[int, _Bracket]:
    """Brackets from a sample, as wide as the parts of the sample differ."""
    rows = pieces.sample()
    size = (stored(pieces.at(*rows[0]).models) or [])[0].span.entries
    count = size * len(rows)
    bits = _magnitudes(pieces, wanted, count, ((size * i, pieces.at(*each)) for i, each in enumerate(rows)))
    share = pieces.entries / count
    bins, counts = _ALL >> _FINE, {}
    for which, numbers in bits.items():
        counts[which] = fused.buffer(f"sample {which}", 4 * bins).address
        fused.count_bins(numbers, count, _FINE, bins, counts[which])
    guessed = {}
    for i, w in wanted.items():
        numbers = bits[w.input]
        some = sum(fused.at_least(numbers, 1, count, 1))
        rank = min(max(round(w.given(round(some * share)) / share), 1), count)

        def bin_(k: int, counts: int = counts[w.input]) -> int:
            return fused.locate(counts, bins, k)[0]

        parts = fused.at_least(numbers, len(rows), size, bin_(rank) << _FINE)
        error = max(math.sqrt(len(parts)) * statistics.pstdev(parts), math.sqrt(rank * (1 - rank / count)))
        margin = math.ceil(_SURE * error) + 8
        high = bin_(rank - margin) + 1 << _FINE if rank > margin else _ALL
        low = bin_(rank + margin) << _FINE if rank + margin <= count else 0
        guessed[i] = _Bracket(low, high - low, max(0, (high - low - 1).bit_length() - _BINS))
    return guessed


def _magnitude(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value
