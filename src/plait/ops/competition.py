"""How strongly each model claims an entry, next to itself and to the others (PCB-Merging)."""

from __future__ import annotations

from collections.abc import Sequence

from plait.lazy import Tensor


def clipped(delta: Tensor, limit: float) -> Tensor:
    """`delta` with magnitudes of at most `limit`, which may be infinite."""
    return delta.clamp(-limit, limit)


def competition(deltas: Sequence[Tensor], limits: Sequence[float]) -> list[Tensor]:
    """For each delta exp(n ((|delta| / limit)^2 - 1)) * tanh(delta * sum of all), 0 where negative; n is their number.

    Magnitudes above limits[i], or below 1e-38, count as that. In float32, or the dtype of the deltas; worked out in float64, so
    that the order of scores does not hang on how a machine rounds exponentials.

    Reference: Du et al., Parameter Competition Balancing for Model Merging, https://arxiv.org/abs/2410.02396
    """
    whole = deltas[0].double()
    for d in deltas[1:]:
        whole = whole + d
    scores = []
    for d, limit in zip(deltas, limits, strict=True):
        own = clipped(d, limit).double().div_(max(limit, 1e-38)).square_().sub_(1).mul_(len(deltas)).exp_()
        scores.append(own.mul_((whole * d).tanh_()).clamp_(min=0).to(d.dtype))
    return scores
