"""From several tensors to one: weighted sums, and the sign election of TIES.

Of tensors as they are stored (`Raw`) they make a `Merged`, which the runner works out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from plait import kernels
from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops.pieces import stored


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum of weights[i] * tensors[i], added in order; a product is rounded before it is added (no fused multiply-add)."""
    if raw := stored(tensors):
        return cast(Tensor, fused.Merged(raw, fused.SUM, weights))
    if kernels.suit(*tensors):
        return kernels.weighted_sum(tensors, weights)
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


def agreeing(deltas: Sequence[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """The majority's sign of each entry, +1 or -1, and for each delta its magnitude where it has that sign, 0 elsewhere.

    The majority's sign is that of the sum of the deltas; 0 counts as +. The magnitudes are the caller's own.
    """
    sign = deltas[0].clone()
    for d in deltas[1:]:
        sign += d
    sign.ge_(0).mul_(2).sub_(1)  # arithmetic instead of booleans and `where`: several times faster, and NaN stays NaN
    return sign, ((d * sign).clamp_(min=0) for d in deltas)


def elected_sum(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    """The weighted deltas that agree with the majority's sign, summed, times `scale`.

    The sign of an entry is that of the sum of all weighted deltas (0 counts as +); zeros never take part. With `normalize` an
    entry is divided by the sum of the weights of those that took part (a sum of 0 divides by 1).

    Reference: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708
    """
    if raw := stored(deltas):
        return cast(Tensor, fused.Merged(raw, fused.ELECT, weights, normalize, scale))
    if kernels.suit(*deltas):
        return kernels.elected_sum(deltas, weights, normalize, scale)
    sign, agreed = agreeing([d * w for d, w in zip(deltas, weights, strict=True)])
    merged, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for magnitude, w in zip(agreed, weights, strict=True):
        merged += magnitude
        if normalize:
            share += magnitude.gt_(0).mul_(w)
    if normalize:
        merged /= share.add_(torch.eq(share, 0, out=torch.empty_like(share)))
    merged *= sign
    return merged if scale == 1 else merged.mul_(scale)


def agreed_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean, weighted, of the values that agree with the sign of the plain sum; a sum of weights below 1e-6 counts as that.

    Reference: Wan et al., FuseChat, https://arxiv.org/abs/2408.07990
    """
    if raw := stored(tensors):
        return cast(Tensor, fused.Merged(raw, fused.AGREE, weights))
    sign, agreed = agreeing(tensors)
    merged, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for magnitude, w in zip(agreed, weights, strict=True):
        merged += magnitude * w
        share += magnitude.gt_(0).mul_(w)
    return merged.div_(share.clamp_(min=1e-6)).mul_(sign)
