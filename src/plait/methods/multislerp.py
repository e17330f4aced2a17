"""A weighted mean of any number of models, or of their differences to a base, on a sphere.

1. Each model is one vector x_i with norm N_i and direction u_i = x_i / (N_i + eps).
2. m = sum_i w_i u_i, normalised, is the mean direction. (The mean tangent at m, along which the original goes on from there,
   is zero, whatever the models are; only the cosine of eps stays of that step.)
3. result = m * sum_i w_i N_i, plus the base if there is one.

Directions that cancel (|sum_i w_i u_i| < eps) have no mean: the result is sum_i w_i x_i. One model alone is returned.

Reference: MergeKit's multislerp, https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import np
from plait.method import PerModel, method, param
from plait.ops.gram import Matrix, gram, silently


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model counts.")
    normalize_weights: bool = param("Divide the weights by their sum.", default=True)
    eps: float = param("Lengths below this count as zero.", default=1e-8, low=0)

    def __post_init__(self) -> None:
        if self.normalize_weights and len(self.weight) > 1 and sum(self.weight) == 0:
            raise ValueError(
                "the weights sum to 0, and normalize_weights divides by their sum",
                "change a weight, or set normalize_weights: false",
            )


@method(Params, space="delta", base="optional", first=gram, gives="coefficients", raw=True)
@silently
def multislerp(p: Params, inner: Matrix) -> list[float]:
    if len(p.weight) == 1:
        return [1.0]
    products = np.array(inner)
    divisor = sum(p.weight) if p.normalize_weights else 1.0
    weights = np.array(p.weight) / divisor
    norms = np.sqrt(products.diagonal())
    lengths = norms + p.eps
    mean = np.divide(weights, lengths, out=np.zeros_like(lengths), where=lengths > 0)  # coefficients of sum_i w_i u_i
    length = math.sqrt(max(float(mean @ products @ mean), 0.0))
    if length < p.eps or length == 0:
        return [float(w) for w in weights]
    return [float(c) for c in mean / length * math.cos(p.eps) * (weights @ norms)]
