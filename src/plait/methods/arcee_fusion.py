"""Take from the model the entries in which it differs from the base by much more than is usual, and the rest from the base.

1. importance = |x - base| * KL(softmax(x) || softmax(base)), the divergence of the entry's row along the last axis; both
   distributions plus 1e-8.
2. threshold = median + 1.5 * (third - first quartile) of the importance over the tensor; a quantile q is the entry at position
   floor(q * (entries - 1)) in ascending order, exactly (the original draws a sample above a million entries).
3. result = x where importance >= threshold, else the base.

If three quarters of the entries did not change, the threshold is 0 and the model is taken everywhere but in rows whose divergence
is zero up to rounding, and came out below.

Reference: Arcee Fusion, https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import method
from plait.ops.cutoff import order_statistics
from plait.ops.pieces import Piece, Pieces, row_sums


@dataclass(frozen=True)
class Params:
    pass


def _importance(piece: Piece) -> Tensor:
    base, x = piece.models
    p, q = (v.softmax(-1).add_(1e-8) for v in (x, base))
    divergence = row_sums((p / q).log_().mul_(p))
    return ((x - base).abs() * divergence).float()


def _first(pieces: Pieces, _: Params) -> float:
    last = pieces.entries - 1
    first, median, third = order_statistics(
        pieces, [last // 4, last // 2, last * 3 // 4], lambda piece: _importance(piece).clamp_(min=0)
    )
    return median + 1.5 * (third - first)


@method(Params, base="required", inputs=(1, 1), unit="row", first=_first)
def arcee_fusion(piece: Piece, _: Params) -> Tensor:
    base, x = piece.models
    importance = _importance(piece)
    merged = torch.where(importance >= piece.whole, x, base)
    return torch.where(importance.isnan(), importance.to(x.dtype), merged)
