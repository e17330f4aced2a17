"""Average each entry over the models that changed it; the others do not count.

1. delta_i = x_i - base is active in an entry where |delta_i| > epsilon.
2. result = base + the mean of the active deltas; where none is active, the base.

Reference: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import method, param
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    epsilon: float = param("Changes up to this, in units of the weights, do not count.", default=1e-5, low=0)


@method(Params, space="delta", base="required", inputs=(0, None))
def ram(piece: Piece, p: Params) -> Tensor:
    masks = active(piece.models, p.epsilon)
    count = sum(masks[1:], masks[0].clone())
    merged = torch.zeros_like(count)
    for delta, mask in zip(piece.models, masks, strict=True):
        merged += delta * mask
    return merged / count.clamp_(min=1)


def active(deltas: list[Tensor], epsilon: float) -> list[Tensor]:
    """For each delta 1 where |delta| > epsilon or NaN, 0 elsewhere, in the dtype of the deltas."""
    return [1 - delta.abs().le_(epsilon) for delta in deltas]
