"""Let the models compete for each entry, by the size of their changes and by their agreement with the sum (PCB-Merging).

1. delta_i = x_i - base; the `clip` share of largest magnitude is lowered to the next one, h_i.
2. Within model i: a = exp(n (|delta_i| / h_i)^2) for n models. Between the models: b = tanh(delta_i * sum_j delta_j), or 0 where
   it is negative. The score is s_i = a b.
3. Of each s_i the `density` share of largest scores is kept (at least one entry), divided by the largest.
4. result = base + lambda * sum_i w_i s_i delta_i / sum_i s_i; the base where no score is kept.

For tasks of which each lives in few entries. `clip` and the default density are the authors', who search the w_i from 0.8 to 1.3.
Ranks and largest scores are those of one tensor, or with `over: model` of the whole model at once, as the authors have them; they
also subtract from a magnitude the smallest one, which is 0 in most tensors, and from a score the largest that is dropped. Every
tensor is treated alike. Up to seven passes with exponentials: some 35 times as long as task arithmetic.

Reference: Du et al., Parameter Competition Balancing for Model Merging, https://arxiv.org/abs/2410.02396
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import PerModel, Survey, method, param
from plait.ops.competition import clipped, competition
from plait.ops.cutoff import EVERYTHING, Chain, Cutoff, Threshold, cutoffs
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("Factor on each model's difference.", default=1.0)
    density: PerModel[float] = param("Share of the entries that keep a score, in [0, 1].", default=0.1, low=0, high=1)
    clip: float = param("Share of the largest changes that is lowered, in [0, 0.1].", default=1e-4, low=0, high=0.1)
    lambda_: float = param("Scale of the whole change.", default=1.0)
    over: str = param("What shares and ranks are taken of.", default="tensor", choices=("tensor", "model"))


#: for each model: the largest magnitude after step 1, the cut of the scores, the largest score
Found = tuple[list[float], Sequence[Cutoff | Threshold], list[float]]


def _first(pieces: Pieces, p: Params) -> Found:
    found: Found = pieces.survey if p.over == "model" else _ranks(pieces, p.density, p.clip)
    return found


def _ranks(pieces: Pieces, density: Sequence[float], clip: float) -> Found:
    n, models = pieces.entries, len(density)
    heights = cutoffs(pieces, [math.floor(clip * n) + 1] * models)
    limits = [math.inf if cut == EVERYTHING else cut.value for cut in heights]  # a single entry is not lowered
    keep = [max(1, math.floor(d * n)) if d > 0 else 0 for d in density]
    cuts = cutoffs(pieces, [*keep, *[1] * models], of=lambda piece: competition(piece.models, limits))
    return limits, cuts[:models], [cut.value if cut.value > 0 else 1.0 for cut in cuts[models:]]


_survey = Survey(
    lambda p: (p.density, p.clip) if p.over == "model" else None, lambda tensors, key: _ranks(Chain(tensors), *key)
)


@method(Params, space="delta", base="required", first=_first, survey=_survey, breaks=("equal models give that model",))
def pcb(piece: Piece, p: Params) -> Tensor:
    limits, cuts, tops = piece.whole
    merged, shares = torch.zeros_like(piece.models[0]), torch.zeros_like(piece.models[0])
    for i, score in enumerate(competition(piece.models, limits)):
        share = cuts[i].keep(score, piece.start) / tops[i]
        shares += share
        merged += clipped(piece.models[i], limits[i]) * share * p.weight[i]
    return merged.div_(shares + torch.eq(shares, 0, out=torch.empty_like(shares))).mul_(p.lambda_)
