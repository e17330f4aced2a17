"""Trim small changes, elect a sign for each entry, average those that agree.

1. delta_i = x_i - base, of which the `density` share of largest magnitude is kept (at least one entry): of each tensor, as
   mergekit does, by default, or with `over: model` of the whole model at once, as in the paper.
2. The sign of an entry is that of sum_i w_i delta_i; deltas of the other sign drop out of that entry.
3. result = base + lambda * the weighted sum of the rest, divided by the weights that took part if `normalize`, unless they
   sum to 0.

Equal magnitudes at the cut are kept in the order of their place, so exactly floor(density * entries) are kept; over the whole
model all of them are kept. That way costs two passes more over all tensors, before the first is written; tensors that have
different densities are cut apart from each other.

Reference: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import PerModel, Survey, method, param
from plait.ops.combine import elected_sum
from plait.ops.cutoff import Cutoff, Threshold, cutoffs, model_cutoffs
from plait.ops.pieces import Piece, Pieces
from plait.ops.rescale import l1_factors


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model's difference counts.")
    density: PerModel[float] = param("Share of the entries that is kept, in [0, 1].", default=1.0, low=0, high=1)
    normalize: bool = param("Divide by the weights that took part in an entry.", default=True)
    rescale: bool = param("Enlarge what is left of a delta to its old L1 norm.", default=False)
    lambda_: float = param("Scale of the whole sum.", default=1.0)
    over: str = param("What the density is a share of.", default="tensor", choices=("tensor", "model"))


def _first(pieces: Pieces, p: Params) -> tuple[Sequence[Cutoff | Threshold], list[float]]:
    n = pieces.entries
    if p.over == "model":
        cuts: Sequence[Cutoff | Threshold] = pieces.survey
    else:
        cuts = cutoffs(pieces, [max(1, math.floor(d * n)) if d > 0 else 0 for d in p.density])
    factors = l1_factors(pieces, lambda piece: _trimmed(piece, cuts)) if p.rescale else [1.0] * len(cuts)
    return cuts, [w * f for w, f in zip(p.weight, factors, strict=True)]


def _trimmed(piece: Piece, cuts: Sequence[Cutoff | Threshold]) -> list[Tensor]:
    return [cut.keep(x, piece.start) for x, cut in zip(piece.models, cuts, strict=True)]


_survey = Survey(lambda p: p.density if p.over == "model" else None, model_cutoffs)


@method(
    Params,
    space="delta",
    base="required",
    inputs=(0, None),
    first=_first,
    idle=("int8_mask",),
    survey=_survey,
    raw=lambda p: p.over == "tensor",
)
def ties(piece: Piece, p: Params) -> Tensor:
    cuts, weights = piece.whole
    return elected_sum(_trimmed(piece, cuts), weights, p.normalize, p.lambda_)
