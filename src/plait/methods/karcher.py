"""The Riemannian (Karcher) mean of any number of models on a sphere, without weights.

1. Each model is one vector with norm N_i and direction u_i; norms up to `tol` have no direction and are left out of step 2.
2. m starts as the normalised mean of the directions (the first of them if they cancel), and moves at most `max_iter` times along
   the mean T of the tangents towards the u_i, m <- cos|T| m + sin|T| T / |T|, until |T| < tol. A direction opposite to m has
   no tangent and does not pull.
3. result = m * mean of all norms.

Reference: Karcher, Riemannian center of mass and mollifier smoothing (1977), https://doi.org/10.1002/cpa.3160300502
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plait.lazy import np
from plait.method import method, param
from plait.ops.gram import Matrix, gram, silently

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Params:
    max_iter: int = param("Largest number of steps.", default=10, low=0)
    tol: float = param("Lengths and angles (in radians) up to this count as zero.", default=1e-5, low=0)


@method(Params, first=gram, gives="coefficients", raw=True)
@silently
def karcher(p: Params, inner: Matrix) -> list[float]:
    if len(inner) == 1:
        return [1.0]
    products = np.array(inner)
    norms = np.sqrt(products.diagonal())
    some = norms > p.tol
    coefficients = np.zeros_like(norms)
    if some.any():
        directions = products[some][:, some] / np.outer(norms[some], norms[some])
        coefficients[some] = _mean(directions, p) / norms[some] * norms.mean()
    return [float(c) for c in coefficients]


def _mean(cosines: Array, p: Params) -> Array:
    """The Karcher mean of unit vectors, as coefficients of them, from their inner products."""

    def length(v: Array) -> float:
        return math.sqrt(max(0.0, float(v @ cosines @ v)))

    share = 1 / len(cosines)
    mean = np.full_like(cosines[0], share)
    if length(mean) < max(p.tol, 1e-12):
        mean = np.eye(len(cosines))[0]
    mean = mean / length(mean)
    for _ in range(p.max_iter):
        cosine = np.clip(cosines @ mean, -1, 1)
        angle = np.arccos(cosine)
        pulls = (angle >= max(p.tol, 1e-12)) & (math.pi - angle >= max(p.tol, 1e-7))
        pull = share * np.where(pulls, angle / np.where(pulls, np.sin(angle), 1.0), 0.0)
        tangent = pull - (pull @ cosine) * mean
        step = length(tangent)
        if step < p.tol or step == 0:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        if length(mean) > p.tol:
            mean = mean / length(mean)
    return np.asarray(mean)
