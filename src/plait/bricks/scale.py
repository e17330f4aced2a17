"""Multiply the merged change by a factor, which may differ by layer and by name.

result = base + factor * change. A gradient over the layers (`factor: [0.3, 1.0]`) and filters work as for every parameter.

Reference: Ilharco et al., Editing Models with Task Arithmetic, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor
from plait.method import param
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    factor: float = param("What the merged change is multiplied by.")


@brick(Params, at="post")
def scale(piece: Piece, p: Params) -> Tensor:
    assert piece.merged is not None
    return piece.merged * p.factor
