"""Spherical interpolation between the base and one model: along the arc instead of the straight line.

The whole tensor is one vector; a is the base, c the model, th the angle between them:
result = (sin((1-t) th) a + sin(t th) c) / sin th. Almost parallel vectors (|cos th| > 0.9995, opposite ones included) are
interpolated in a straight line; a zero vector counts as perpendicular to everything.

Reference: Shoemake, Animating rotation with quaternion curves (1985), https://doi.org/10.1145/325334.325242
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.method import method, param
from plait.ops.gram import Matrix, gram


@dataclass(frozen=True)
class Params:
    t: float = param("Position on the arc: 0 is the base, 1 the model; beyond that extrapolates.")


@method(Params, base="required", inputs=(1, 1), first=gram, gives="coefficients", raw=True)
def slerp(p: Params, products: Matrix) -> list[float]:
    norms = [n if (n := math.sqrt(products[i][i])) > 1e-8 else 1.0 for i in range(2)]
    cosine = max(-1.0, min(1.0, products[0][1] / (norms[0] * norms[1])))
    if abs(cosine) > 0.9995:
        return [1 - p.t, p.t]
    angle = math.acos(cosine)
    return [math.sin((1 - p.t) * angle) / math.sin(angle), math.sin(p.t * angle) / math.sin(angle)]
