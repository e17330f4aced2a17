"""Take the tensors of one model as they are: stack layers of several models, cut layers out, scale tensors.

result = x, bit for bit, or scale * x.

Reference: Kim et al., SOLAR 10.7B: depth up-scaling, https://arxiv.org/abs/2312.15166
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.method import PerModel, method, param


@dataclass(frozen=True)
class Params:
    scale: PerModel[float] = param("Factor on the tensor; without one the bytes are copied.", default=None)


@method(Params, inputs=(1, 1), gives="coefficients", raw=True)
def passthrough(p: Params, _: None) -> list[float]:
    return [1.0 if scale is None else scale for scale in p.scale]
