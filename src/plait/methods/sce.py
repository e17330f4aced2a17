"""Select the entries in which the models differ most, weigh each model by the size of what is left, and elect signs (SCE).

1. delta_i = x_i - base. With `select_topk` < 1 only the entries whose variance over the models is largest are kept:
   floor(select_topk * entries with a variance above 0). Equal variances are kept in the order of their place.
2. The weight a_i of a model is the mean of delta_i^2 over the tensor, normalised to a sum of 1 (equal weights if the sum is
   below 1e-6).
3. The sign of an entry is that of sum_i delta_i; deltas of the other sign drop out of that entry.
4. result = base + sum a_i delta_i / sum a_i over the rest (a sum below 1e-6 counts as 1e-6).

Reference: Wan et al., FuseChat, https://arxiv.org/abs/2408.07990
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import method, param
from plait.ops.combine import agreeing
from plait.ops.cutoff import EVERYTHING, Cutoff, cutoffs
from plait.ops.pieces import Piece, Pieces, row_sums, total


@dataclass(frozen=True)
class Params:
    select_topk: float = param("Share of the differing entries that is kept, in [0, 1].", default=1.0, low=0, high=1)


def _variance(piece: Piece) -> list[Tensor]:
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
    return [variance.div_(len(piece.models)).float()]


def _select(piece: Piece, cut: Cutoff) -> list[Tensor]:
    if cut == EVERYTHING:
        return piece.models
    mask = cut.mask(_variance(piece)[0], piece.start)
    return [x * mask for x in piece.models]


def _first(pieces: Pieces, p: Params) -> tuple[Cutoff, list[float]]:
    cut = EVERYTHING
    if p.select_topk < 1:
        differing = total(pieces, lambda block: torch.stack(block).count_nonzero(), of=_variance)
        (cut,) = cutoffs(pieces, [math.floor(float(differing) * p.select_topk)], of=_variance)
    squares = total(
        pieces,
        lambda block: torch.cat([row_sums(x.double().square()) for x in block]),
        of=lambda piece: _select(piece, cut),
    )
    means = (squares / pieces.entries).tolist()
    norm = sum(means)
    return cut, [m / norm for m in means] if norm >= 1e-6 else [1 / len(means)] * len(means)


@method(Params, space="delta", base="required", inputs=(0, None), first=_first, idle=("int8_mask",))
def sce(piece: Piece, p: Params) -> Tensor:
    cut, weights = piece.whole
    sign, agreed = agreeing(_select(piece, cut))
    merged, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for magnitude, w in zip(agreed, weights, strict=True):
        merged += magnitude * w
        share += magnitude.gt_(0).mul_(w)
    return merged.div_(share.clamp_(min=1e-6)).mul_(sign)
