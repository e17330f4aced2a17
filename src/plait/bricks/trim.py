"""Keep the largest changes of each model, and set the others to zero.

Of each model's difference to the base the `density` share of largest magnitude is kept (at least one entry, over one tensor), as
the first step of TIES does. Equal magnitudes at the cut are kept in the order of their place.

For methods that do not trim by themselves: small changes are mostly noise of the training, and disturb what other models learnt.

Reference: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor
from plait.method import PerModel, param
from plait.ops.cutoff import Cutoff, Threshold, cutoffs
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    density: PerModel[float] = param("Share of the entries that is kept, in [0, 1].", default=0.2, low=0, high=1)


def _first(pieces: Pieces, p: Params) -> Sequence[Cutoff | Threshold]:
    n = pieces.entries
    return cutoffs(pieces, [max(1, math.floor(d * n)) if d > 0 else 0 for d in p.density])


@brick(Params, at="pre", first=_first)
def trim(piece: Piece, p: Params) -> list[Tensor]:
    return [cut.keep(x, piece.start) for x, cut in zip(piece.models, piece.whole, strict=True)]
