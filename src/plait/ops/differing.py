"""Where models differ most: the variance of an entry over them, and the entries in which it is largest."""

from __future__ import annotations

import math
from typing import cast

from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops import brackets
from plait.ops.cutoff import EVERYTHING, NOTHING, Cutoff, Threshold, cutoffs
from plait.ops.pieces import Piece, Pieces, added, raw_sums, row_sums, stored, total


def variance(piece: Piece) -> Tensor:
    """Over the models, for each entry; float32, 0 exactly where all are equal."""
    first, *others = piece.models
    apart = [x.double() - first for x in others]  # all 0 where all models are equal, whatever the rounding
    mean = torch.zeros_like(first, dtype=torch.float64)
    for d in apart:
        mean += d
    mean /= len(piece.models)
    variance = mean.square()
    for d in apart:
        variance += d.sub_(mean).square_()
    return variance.div_(len(piece.models)).float()


def most_differing(pieces: Pieces, share: float) -> Cutoff | Threshold:
    """Keeps floor(share * entries with a variance above 0) entries, those of largest variance; everything from a share of 1."""
    if share >= 1:
        return EVERYTHING
    if pieces.raw:
        wanted = brackets.Wanted(-1, lambda some: math.floor(some * share))
        place = brackets.search(pieces, {0: wanted})[0]
        return Threshold(*place) if place else NOTHING
    some = total(pieces, lambda block: torch.stack(block).count_nonzero(), of=lambda piece: [variance(piece)])
    return cutoffs(pieces, [math.floor(float(some) * share)], of=lambda piece: [variance(piece)])[0]


def where_differing(piece: Piece, cut: Cutoff | Threshold) -> list[Tensor]:
    """The models with zeros where an entry is not kept."""
    if cut == EVERYTHING:
        return piece.models
    if raw := stored(piece.models):
        choice = fused.Choice(cut.value, fused.counter(raw[0], cut.count if isinstance(cut, Threshold) else 0))
        return cast(list[Tensor], [x.chosen(choice) for x in raw])
    mask = cast(Cutoff, cut).mask(variance(piece), piece.start)
    return [x * mask for x in piece.models]


def mean_squares(pieces: Pieces, cut: Cutoff | Threshold) -> list[float]:
    """For each model the mean over all entries of the squares of what is kept."""

    def squares(block: list[Tensor]) -> Tensor:
        return torch.cat([row_sums(x.double().square()) for x in block])

    parts: list[list[float]] = []
    for piece in pieces:
        if (raw := stored(where_differing(piece, cut))) is None:
            parts = [total(pieces, squares, of=lambda piece: where_differing(piece, cut)).tolist()]
            break
        parts += raw_sums(raw, fused.SQUARES)
    return [s / pieces.entries for s in added(parts)]
