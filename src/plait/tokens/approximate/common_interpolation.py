"""A weighted mean of the model's rows of the k shared tokens that are nearest to the token in the donor's space.

Weights: `distance_proportional`, one over the distance; `barycentric`, those that sum to 1 and come closest to the token;
`least_squares`, those that come closest. With the cosine (`-c`) the nearest are those of the smallest angle, and the first
kind of weight is the cosine.
"""

from plait.lazy import Tensor, torch
from plait.tokens.space import Space

DONOR = True
SCHEMES = ("distance_proportional", "barycentric", "least_squares")
SMALL = 1e-12


def common_interpolation(space: Space) -> Tensor:
    mine, theirs = space.anchors()
    k, cosine = min(space.options.k, len(mine)), space.options.cosine_similarity
    unit = torch.nn.functional.normalize(theirs, dim=1)
    out = torch.empty((space.count, space.hidden))
    for start, stop in space.blocks(max(len(mine), k * (space.hidden + theirs.shape[1]))):
        x = space.targets(start, stop)
        if cosine:
            near, at = (torch.nn.functional.normalize(x, dim=1) @ unit.T).topk(k, dim=1)
        else:
            near, at = torch.cdist(x, theirs, compute_mode="donot_use_mm_for_euclid_dist").topk(k, dim=1, largest=False)
        weights = _weights(space.options.weight_scheme, x.double(), theirs[at].double(), near.double(), cosine)
        out[start:stop] = torch.bmm(weights[:, None], mine[at].double())[:, 0].float()
    return out


def _weights(scheme: str, x: Tensor, points: Tensor, near: Tensor, cosine: bool) -> Tensor:
    """[targets, k] for `x` [targets, d] and its nearest `points` [targets, k, d]."""
    if scheme == "distance_proportional":
        weights = near if cosine else 1 / near.clamp_min(SMALL)
        total = weights.sum(1, keepdim=True)
        return weights / torch.where(total.abs() < SMALL, torch.ones(()).double(), total)
    if scheme == "least_squares":
        inverse: Tensor = torch.linalg.pinv(points.transpose(1, 2))
        return (inverse @ x[:, :, None])[:, :, 0]
    off = points - x[:, None]
    weights = torch.linalg.pinv(off @ off.transpose(1, 2), hermitian=True).sum(2)
    total = weights.sum(1, keepdim=True)
    even = torch.full_like(weights, 1 / weights.shape[1])
    return torch.where(total.abs() < SMALL, even, weights / total)
