"""Average the models' differences, each weighted by its own squared norm (MetaGPT).

1. delta_i = x_i - base, as one vector; w_i = |delta_i|^2 / sum_j |delta_j|^2.
2. result = base + lambda * sum_i w_i delta_i.

With these weights the loss, taken as quadratic with nearly orthogonal differences, is least on average over the models. The
norms are those of one tensor; the paper takes them over the whole model. No weights to choose: a first try for fine-tunes of
unequal strength, where the one that moved most counts most. Every tensor is treated alike. Two passes.

Reference: Zhou et al., MetaGPT, https://arxiv.org/abs/2406.11385
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import method, param
from plait.ops.gram import gram


@dataclass(frozen=True)
class Params:
    lambda_: float = param("Scale of the whole sum; 1 in the paper.", default=1.0)


@method(Params, space="delta", base="required", first=gram, gives="coefficients")
def metagpt(p: Params, products: Tensor) -> list[float]:
    squares = products.diagonal().tolist()
    divisor = sum(squares) or 1.0  # where nothing changed, any weights do
    return [p.lambda_ * square / divisor for square in squares]
