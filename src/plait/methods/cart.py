"""Average the models and add what is strongest in each one's difference to the average (CART); needs no base model.

1. mean = the weighted mean of the x_i, with weights s_i of sum 1; centred_i = x_i - mean, of each matrix.
2. Of each centred_i the leading `rank` share of the singular triplets is kept, rounded up.
3. result = mean + lambda * n * sum_i s_i kept_i for n models.

For full fine-tunes of one base that is not at hand. A rank of 0.08 and a lambda near 1 are the paper's. Vectors, embeddings,
heads and routers get the mean. Costs one eigendecomposition a model for each matrix: about 7 s for three models and 2048 x 2048
on one core, growing with the cube of the smaller side.

Reference: Choi et al., Revisiting Weight Averaging for Model Merging, https://arxiv.org/abs/2412.12153
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor
from plait.matrices import by_matrix
from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights, weighted_sum
from plait.ops.pieces import Piece
from plait.ops.spectral import low_rank


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model counts, relative to the others.", default=1.0)
    rank: float = param("Share of the singular triplets that is kept, in [0, 1].", default=0.08, low=0, high=1)
    lambda_: float = param("Scale of what is added to the mean.", default=1.0)

    def __post_init__(self) -> None:
        if sum(self.weight) == 0:
            raise ValueError("the weights sum to 0, and cart divides by their sum", "change a weight")


@method(Params, unit="matrix")
def cart(piece: Piece, p: Params) -> Tensor:
    shares = delta_weights(p.weight, normalize=True, scale=1.0)

    def merge(matrix: Piece) -> Tensor:
        mean = weighted_sum(matrix.models, shares)
        rank = math.ceil(p.rank * min(mean.shape) - 1e-9)
        merged = mean.clone()
        for x, share in zip(matrix.models, shares, strict=True):
            merged += low_rank(x - mean, rank) * (share * len(shares) * p.lambda_)
        return merged

    return by_matrix(piece, merge, shares)
