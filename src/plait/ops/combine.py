"""From several tensors to one: weighted sums, and the sign election of TIES."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum of weights[i] * tensors[i], added in order; a product is rounded before it is added (no fused multiply-add)."""
    out = tensors[0] * weights[0]
    for x, w in zip(tensors[1:], weights[1:], strict=True):
        out += x * w
    return out


def delta_weights(weights: Sequence[float], normalize: bool, scale: float) -> list[float]:
    """Weights for a plain sum of deltas: times `scale`, divided by their sum if `normalize` (a sum of 0 divides by 1)."""
    divisor = sum(weights) if normalize else 1.0
    if abs(divisor) < 1e-8:
        divisor = 1.0
    return [w * scale / divisor for w in weights]


def elected_sum(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    """The weighted deltas that agree with the majority's sign, summed, times `scale`.

    The sign of an entry is that of the sum of all weighted deltas (0 counts as +); zeros never take part. With `normalize` an
    entry is divided by the sum of the weights of those that took part (a sum of 0 divides by 1).

    Reference: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708
    """
    weighted = [d * w for d, w in zip(deltas, weights, strict=True)]
    up = weighted_sum(weighted, [1.0] * len(weighted)) >= 0
    merged, share = torch.zeros_like(weighted[0]), torch.zeros_like(weighted[0])
    for d, w in zip(weighted, weights, strict=True):
        agrees = torch.where(up, d > 0, d < 0)
        merged += d * agrees
        share += agrees * w
    if normalize:
        merged /= share.masked_fill_(share == 0, 1.0)
    return merged * scale
