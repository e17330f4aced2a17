"""The change that disturbs the models' own changes least, as far as they agree on it (WUDI, SWUDI).

1. delta_i = x_i - base, a matrix [out, in]; G_i = delta_i^T delta_i / |delta_i|^2 stands for what the model's layer is fed
   with.
2. The interference of a change t is sum_i w_i |(t - delta_i) delta_i^T|^2 / |delta_i|^2. With C = sum w_i G_i it is least at D
   C^-1, D = sum w_i delta_i G_i. That point itself follows noise where C has small eigenvalues c.
3. `spectral`: t starts at sum_i w_i delta_i and goes the share 1 - exp(-c * time) of the way in each eigenvector of C, only in
   the `keep` share of them with the largest c; it stays where it was in the others. `ridge`: t = D (C + r)^-1, with r = `ridge`
   times the mean of C's diagonal.
4. result = base + lambda * t.

For tasks that use a layer's inputs differently; no data is needed. `time` 300 and `keep` 0.65 are the paper's, with 0.85 for
full fine-tunes of language models. Since t starts at a sum, many models may want lambda near 1 / models. Vectors, embeddings,
heads and routers get lambda * the mean of the w_i delta_i; a model that did not change takes no part. Costs one
eigendecomposition for each matrix, of the smaller of `in` and models * `out`: about 7 s for three models and 2048 x 2048 on one
core, growing with the cube.

Reference: Cheng et al., Whoever Started the Interference Should End It, https://arxiv.org/abs/2503.08099; the closed form: Wei
et al., Closed-Form Spectral Regularization for Multi-Task Model Merging, https://arxiv.org/abs/2606.07289
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.interference import least_interference, ridged
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model's difference counts.", default=1.0, low=0)
    solver: str = param("How far to follow the least interference.", default="spectral", choices=("spectral", "ridge"))
    time: float = param("How far to go from the sum (`spectral`).", default=300.0, low=0)
    keep: float = param("Share of the directions that may move, in [0, 1] (`spectral`).", default=0.65, low=0, high=1)
    ridge: float = param("Added to the diagonal of C, as a share of its mean (`ridge`).", default=1e-3, low=0)
    lambda_: float = param("Scale of the whole change.", default=1.0)


@method(Params, space="delta", base="required", unit="matrix", breaks=("equal models give that model",))
def wudi(piece: Piece, p: Params) -> Tensor:
    def merge(matrix: Piece) -> Tensor:
        norms = [float(x.square().sum()) for x in matrix.models]
        weights = [w / norm if norm else 0.0 for w, norm in zip(p.weight, norms, strict=True)]
        columns = matrix.models[0].shape[1]
        moving = math.ceil(p.keep * columns - 1e-9)

        def spectral(c: Tensor) -> Tensor:
            gone = -torch.expm1(-c * p.time) / c
            gone[moving:] = 0
            return gone

        if p.solver == "ridge":
            return least_interference(matrix.models, weights, ridged(p.ridge, columns))
        return least_interference(matrix.models, weights, spectral, start=p.weight)

    return by_matrix(piece, merge, [w / len(p.weight) for w in p.weight]).mul_(p.lambda_)
