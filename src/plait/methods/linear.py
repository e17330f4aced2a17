"""A weighted average of the models (model soup).

result = sum_i w_i x_i / sum_i w_i, or without the division if `normalize` is false. Weights
that sum to 0 are refused, unless `normalize` is false.

Reference: Wortsman et al., Model soups, https://arxiv.org/abs/2203.05482
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.method import PerModel, method, param


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much each model counts, relative to the others; may be negative.")
    normalize: bool = param("Divide by the sum of the weights.", default=True)


@method(Params, gives="coefficients", raw=True)
def linear(p: Params, _: None) -> list[float]:
    divisor = sum(p.weight) if p.normalize else 1.0
    if divisor == 0:
        raise ValueError(
            "the weights sum to 0, and normalize divides by their sum", "change a weight, or set normalize: false"
        )
    return [w / divisor for w in p.weight]
