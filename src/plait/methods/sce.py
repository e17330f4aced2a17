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

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import method, param
from plait.ops.combine import agreed_mean
from plait.ops.cutoff import Cutoff, Threshold
from plait.ops.differing import mean_squares, most_differing, where_differing
from plait.ops.pieces import Piece, Pieces


@dataclass(frozen=True)
class Params:
    select_topk: float = param("Share of the differing entries that is kept, in [0, 1].", default=1.0, low=0, high=1)


def _first(pieces: Pieces, p: Params) -> tuple[Cutoff | Threshold, list[float]]:
    cut = most_differing(pieces, p.select_topk)
    means = mean_squares(pieces, cut)
    norm = sum(means)
    return cut, [m / norm for m in means] if norm >= 1e-6 else [1 / len(means)] * len(means)


@method(Params, space="delta", base="required", inputs=(0, None), first=_first, raw=True, idle=("int8_mask",))
def sce(piece: Piece, p: Params) -> Tensor:
    cut, weights = piece.whole
    return agreed_mean(where_differing(piece, cut), weights)
