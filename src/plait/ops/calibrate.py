"""New singular values for a delta: before a merge (`star`), or after one (`subspace_boost`, `svc`).

Each takes matrices `[rows, columns]`, works in float64 and gives the dtype it was given. Singular values up to 1e-6 of the
largest count as zero and stay so; a zero matrix stays zero, and one that is not finite becomes NaN. Costs one decomposition of
the smaller side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plait.lazy import Tensor, torch
from plait.ops.spectral import ZERO, svd


def star(delta: Tensor, eta: float = 0.4) -> Tensor:
    """Keep the fewest leading singular values that sum to `eta` (in [0, 1]) of all, enlarged to the old sum; at least one.

    Reference: Lee et al., STAR: Spectral Truncation and Rescale, https://arxiv.org/abs/2502.10339
    """
    u, s, v = _triplets(delta)
    if not len(s):
        return torch.zeros_like(delta)
    k = _reach(s, eta) + 1
    return ((u[:, :k] * (s[:k] * (s.sum() / s[:k].sum()))) @ v[:, :k].mT).to(delta.dtype)


def subspace_boost(delta: Tensor, beta: float = 0.01) -> Tensor:
    """Raise all later singular values to the one at which their running sum reaches `beta` (in [0, 1]) of the whole.

    At 0 all become the largest; at 1 nothing changes. The result is larger than the delta, so it wants a scale of its own.

    Reference: Skorobogat et al., Subspace-Boosted Model Merging, https://arxiv.org/abs/2506.16506
    """
    u, s, v = _triplets(delta)
    if not len(s):
        return torch.zeros_like(delta)
    return ((u * s.clamp(min=s[_reach(s, beta)])) @ v.mT).to(delta.dtype)


def svc(merged: Tensor, deltas: Sequence[Tensor], alpha: float = 0.1) -> Tensor:
    """Scale each singular value of a merged delta so that directions which several models share are not counted several times.

    For the left vector u of one: a = u^T merged, a_i = u^T delta_i, and s_i = <a, a_i> / |a_i|^2 says how much more than model
    i's own part the merge has; it is 0 where |a_i| is zero, up to 1e-6 of all of them. The value is multiplied by models /
    sum_i max(alpha, s_i), or kept where that sum is 0. `alpha`, above 0, bounds how much it can grow: by 1 / alpha.

    Reference: When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging, https://arxiv.org/abs/2602.05536
    """
    u, s, v = _triplets(merged)
    shares = torch.zeros_like(s)
    for delta in deltas:
        part = u.mT @ delta.double()  # [k, columns]
        along, size = s * (part * v.mT).sum(1), part.square().sum(1)
        none = size <= ZERO**2 * size.sum()
        shares += torch.where(none, 0.0, along / torch.where(none, 1.0, size)).clamp(min=alpha)
    factor = torch.where(shares > 0, len(deltas) / shares, 1.0)
    return ((u * (s * factor)) @ v.mT).to(merged.dtype)


def _triplets(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(x.isfinite().all()):  # LAPACK refuses such matrices
        nan = torch.full((max(x.shape), 1), math.nan, dtype=torch.float64, device=x.device)
        return nan[: x.shape[0]], nan[0], nan[: x.shape[1]]
    return svd(x.double())


def _reach(s: Tensor, share: float) -> int:
    """The number of the singular value with which the running sum reaches this share of the whole sum."""
    running = s.cumsum(0)
    return min(int((running < share * running[-1]).sum()), len(s) - 1)
