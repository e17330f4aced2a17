"""An expert's weights, with noise and a factor.

    w' = residual_scale * (w + noise_scale * n),  n standard normal

Noise tells experts apart that begin as one model; the factor, on a down projection, weighs what the expert adds.

Reference: mergekit's MoE configs, https://github.com/arcee-ai/mergekit/blob/main/docs/moe.md
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import method, param
from plait.ops.pieces import Piece
from plait.ops.random import normal


@dataclass(frozen=True)
class Params:
    noise_scale: float = param("Standard deviation of the noise.", default=0.0)
    residual_scale: float = param("Factor on the result.", default=1.0)


@method(Params, inputs=(1, 1))
def expert(piece: Piece, p: Params) -> Tensor:
    x = piece.models[0]
    if p.noise_scale:
        noise = normal(piece.seed, piece.tensor, 0, piece.start, x.numel()).reshape(x.shape)
        x = x + noise.to(x.dtype) * p.noise_scale
    return x * p.residual_scale if p.residual_scale != 1 else x
