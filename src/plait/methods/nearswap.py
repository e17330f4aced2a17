"""Move the base towards the model where the two are already near each other, and little elsewhere.

result = base + w * delta with delta = x - base and w = t / |delta|, at most 1 and at least 0: no entry moves further than t.
Differences below 1e-6 count as 1e-6.

Reference: Alchemonaut, NearSwap, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor
from plait.method import method, param
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    t: float = param("The furthest that an entry moves, in units of the weights; small values change little.")


@method(Params, space="delta", base="required", inputs=(1, 1))
def nearswap(piece: Piece, p: Params) -> Tensor:
    (delta,) = piece.models
    return delta * (p.t / delta.abs().clamp_(min=1e-6)).clamp_(0, 1)
