"""Keep the middle of each difference: drop the largest changes and the smallest, and add the rest to the base.

1. delta_i = x_i - base. With N entries in the tensor, the floor(gamma * N) of largest magnitude are dropped, of the rest the
   floor(density * N) of largest magnitude are kept. If density + gamma > 1, fewer large ones are dropped; a density of 1 drops
   nothing.
2. With `rescale` what is left is enlarged to the old L1 norm of the tensor.
3. result = base + lambda * sum_i w_i delta_i, divided by the sum of the weights if `normalize`, unless that is 0
   (below 1e-8).

Equal magnitudes are taken in the order of their place, the first as if it were the largest.

Reference: Davari and Belilovsky, Model Breadcrumbs, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights, weighted_sum
from plait.ops.cutoff import NOTHING, Cutoff, Threshold, cutoffs
from plait.ops.pieces import Piece, Pieces
from plait.ops.rescale import l1_factors


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model's difference counts.")
    density: PerModel[float] = param("Share of the entries that is kept, in [0, 1].", default=1.0, low=0, high=1)
    gamma: PerModel[float] = param(
        "Share of the largest entries that is dropped, in [0, 1].", default=0.01, low=0, high=1
    )
    normalize: bool = param("Divide by the sum of the weights.", default=False)
    rescale: bool = param("Enlarge what is left of a delta to its old L1 norm.", default=False)
    lambda_: float = param("Scale of the whole sum.", default=1.0)


#: for each model: what is kept together with the largest entries, and the largest entries
Bands = list[tuple[Cutoff | Threshold, Cutoff | Threshold]]


def first(pieces: Pieces, p: Params) -> tuple[Bands, list[float]]:
    """The bands, and the factor by which what is left of each delta is enlarged."""
    bands = _bands(pieces, p)
    factors = l1_factors(pieces, lambda piece: middle(piece, bands)) if p.rescale else [1.0] * len(bands)
    return bands, factors


def middle(piece: Piece, bands: Bands) -> list[Tensor]:
    """Each model with zeros outside of its band."""
    kept = []
    for x, (inner, outer) in zip(piece.models, bands, strict=True):
        kept.append(inner.keep(outer.cut(x, piece.start), piece.start))
    return kept


def _bands(pieces: Pieces, p: Params) -> Bands:
    n = pieces.entries
    kept = [n if d >= 1 else math.floor(max(d, 0) * n) for d in p.density]
    dropped = [min(math.floor(g * n), n - k) for g, k in zip(p.gamma, kept, strict=True)]
    cuts = cutoffs(pieces, [k + d for k, d in zip(kept, dropped, strict=True)] + dropped)
    inner, outer = cuts[: len(kept)], cuts[len(kept) :]
    return [(i, o) if k else (NOTHING, NOTHING) for i, o, k in zip(inner, outer, kept, strict=True)]


@method(Params, space="delta", base="required", inputs=(0, None), first=first, raw=True, idle=("int8_mask",))
def breadcrumbs(piece: Piece, p: Params) -> Tensor:
    bands, factors = piece.whole
    weights = delta_weights(p.weight, p.normalize, p.lambda_)
    return weighted_sum(middle(piece, bands), [w * f for w, f in zip(weights, factors, strict=True)])
