"""Bring the size of the merged change back to that of the models' changes (MAGIC).

1. Of each tensor the Frobenius norm of the merged difference to the base, and of each model's, as the method saw it.
2. The merged one is multiplied by mean / norm, where the mean of the models' norms is weighted by |weight|; `strength` goes a
   part of the way. A merged change of norm 0 stays.

`weight` stands under each model, as `norm_guard.weight`. A cheap guard for every method: averages shrink changes that point
apart, sums blow up changes that agree.

Reference: MAGIC: Achieving Superior Model Merging via Magnitude Calibration, https://arxiv.org/abs/2512.19320
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor, torch
from plait.method import PerModel, param
from plait.ops.pieces import Piece, Pieces, row_sums, total


@dataclass(frozen=True)
class Params:
    strength: float = param("How far to go, in [0, 1]: 0 changes nothing.", default=1.0, low=0, high=1)
    weight: PerModel[float] = param("How much each model's norm counts in the mean.", default=1.0)


def _first(pieces: Pieces, p: Params) -> float:
    def squares(block: list[Tensor]) -> Tensor:
        return torch.cat([row_sums(x.double().square()) for x in block])

    def of(piece: Piece) -> list[Tensor]:
        assert piece.merged is not None
        return [piece.merged, *piece.models]

    norm, *norms = (math.sqrt(x) for x in total(pieces, squares, of).tolist())
    weights = [abs(w) for w in p.weight]
    if norm == 0 or sum(weights) == 0:
        return 1.0
    wanted = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    return 1 + p.strength * (wanted / norm - 1)


@brick(Params, at="post", first=_first)
def norm_guard(piece: Piece, p: Params) -> Tensor:
    assert piece.merged is not None
    factor: float = piece.whole
    return piece.merged * factor
