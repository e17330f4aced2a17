"""The k largest magnitudes of a tensor, exactly, without sorting it.

The bits of a non-negative float32, read as an integer, are ordered like the number. A histogram of the upper 15 bits finds the
bin with the k-th largest magnitude, a second one of the lower 16 bits finds its exact value. Entries equal to it are kept in
the order of their numbers until there are k, so the choice does not depend on how the tensor was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.ops.pieces import Pieces

_LOW = 16


@dataclass(frozen=True)
class Cutoff:
    """Keep the entries whose magnitude bits exceed `bits`, and those equal to `bits` with a number below `stop`."""

    bits: int
    stop: int

    def mask(self, x: Tensor, start: int) -> Tensor:
        """True where an entry is kept; `x` is a piece whose first entry has the number `start`."""
        magnitude = _bits(x)
        keep = magnitude > self.bits
        if self.stop > start:
            equal = magnitude == self.bits
            if self.stop < start + x.numel():
                equal.reshape(-1)[self.stop - start :] = False
            keep |= equal
        return keep

    def keep(self, x: Tensor, start: int) -> Tensor:
        """A copy of `x` with zeros where an entry is not kept."""
        return x * self.mask(x, start)


EVERYTHING = Cutoff(-1, 0)
NOTHING = Cutoff((1 << 31) - 1, 0)


def cutoffs(pieces: Pieces, keep: Sequence[int]) -> list[Cutoff]:
    """For each model the `Cutoff` that keeps its keep[i] largest magnitudes over the whole tensor.

    `pieces` is gone through up to three times. Works on the float32 value of each entry.
    """
    high = torch.zeros(len(keep), 1 << 15, dtype=torch.int64)
    size = pieces.entries
    for piece in pieces:
        for i, x in enumerate(piece.models):
            high[i] += torch.bincount(_bits(x).reshape(-1) >> _LOW, minlength=1 << 15)
    wanted = [min(max(k, 0), size) for k in keep]
    bins, above = zip(*(_locate(high[i], k) for i, k in enumerate(wanted)), strict=True)

    low = torch.zeros(len(keep), 1 << _LOW, dtype=torch.int64)
    for piece in pieces:
        for i, x in enumerate(piece.models):
            bits = _bits(x).reshape(-1)
            inside = bits[(bits >> _LOW) == bins[i]]
            low[i] += torch.bincount(inside & ((1 << _LOW) - 1), minlength=1 << _LOW)
    cuts = []
    for i, k in enumerate(wanted):
        value, more = _locate(low[i], k - above[i])
        equal = k - above[i] - more  # entries at the cutoff that are to be kept
        every = int(low[i, value]) == equal
        cuts.append(((bins[i] << _LOW) | value, equal, every))

    stops = [size if every else None for _, _, every in cuts]
    left = [equal for _, equal, _ in cuts]
    if None in stops:
        for piece in pieces:
            for i, x in enumerate(piece.models):
                if stops[i] is None:
                    at = (_bits(x).reshape(-1) == cuts[i][0]).nonzero().reshape(-1)
                    if len(at) >= left[i]:
                        stops[i] = piece.start + (int(at[left[i] - 1]) + 1 if left[i] else 0)
                    left[i] -= len(at)
    return [
        EVERYTHING if k >= size else NOTHING if k == 0 else Cutoff(bits, stop or 0)
        for k, (bits, _, _), stop in zip(wanted, cuts, stops, strict=True)
    ]


def _bits(x: Tensor) -> Tensor:
    """The magnitudes' bits, int32, ordered like the magnitudes."""
    return x.float().contiguous().view(torch.int32) & 0x7FFFFFFF


def _locate(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest entry (k from 1), and how many entries lie in the bins above it."""
    above = histogram.flip(0).cumsum(0).flip(0)  # entries in this bin and above
    bin_ = int((above >= max(k, 1)).sum()) - 1
    bin_ = max(bin_, 0)
    return bin_, int(above[bin_] - histogram[bin_])
