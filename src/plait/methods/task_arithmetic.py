"""Add the models' differences to the base (task vectors), each times its weight.

result = base + lambda * sum_i w_i (x_i - base); with `normalize` the sum is divided by the sum of the weights,
unless that is 0 (below 1e-8).

Reference: Ilharco et al., Editing models with task arithmetic, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.method import PerModel, method, param
from plait.ops.combine import delta_weights


@dataclass(frozen=True)
class Params:
    weight: PerModel[float] = param("How much of each model's difference is added; negative values take it away.")
    normalize: bool = param("Divide by the sum of the weights.", default=False)
    lambda_: float = param("Scale of the whole sum.", default=1.0)


@method(
    Params,
    space="delta",
    base="required",
    inputs=(0, None),
    gives="coefficients",
    raw=True,
    idle=("density", "rescale", "int8_mask"),
)
def task_arithmetic(p: Params, _: None) -> list[float]:
    return delta_weights(p.weight, p.normalize, p.lambda_)
