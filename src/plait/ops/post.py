"""After a merge: how much of the change each layer gets, and how large the change is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from plait.lazy import Tensor, torch
from plait.ops.pieces import BLOCK, row_sums


def lines(layer: int, count: int, alpha: float, beta: float) -> float:
    """LiNeS: the factor alpha + beta * layer / (count - 1) on the merged delta of a layer, from 0 (shallowest) to count - 1.

    A stack of one layer gets alpha. Raises ValueError for a layer that is not in the stack.

    Reference: Wang et al., LiNeS: Post-training Layer Scaling, https://arxiv.org/abs/2410.17146
    """
    if not 0 <= layer < count:
        raise ValueError(f"layer {layer} is not one of {count} layers, which count from 0")
    return alpha + beta * layer / max(1, count - 1)


def norm_factor(norm: float, norms: Sequence[float], weights: Sequence[float], strength: float = 1.0) -> float:
    """MAGIC: what brings a merged delta of this norm to the mean of the models' norms, weighted by |weights[i]|.

    `strength` in [0, 1] is how far to go: 0 gives 1. Also 1 where the norm, or the sum of the weights, is 0.

    Reference: MAGIC: Achieving Superior Model Merging via Magnitude Calibration, https://arxiv.org/abs/2512.19320
    """
    total = sum(abs(w) for w in weights)
    if norm == 0 or total == 0:
        return 1.0
    wanted = sum(abs(w) * n for w, n in zip(weights, norms, strict=True)) / total
    return 1 + strength * (wanted / norm - 1)


def norm_guard(merged: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], strength: float = 1.0) -> Tensor:
    """`merged` times `norm_factor` of its Frobenius norm and those of the deltas: whole tensors, float32 or float64."""
    return merged * norm_factor(norm(merged), [norm(d) for d in deltas], weights, strength)


def norm(x: Tensor) -> float:
    """The Frobenius norm of a whole tensor, summed in float64 block by block, so that threads do not change it."""
    blocks = torch.split(x.reshape(-1), BLOCK)
    return math.sqrt(math.fsum(float(row_sums(block.double().square())) for block in blocks if len(block)))
