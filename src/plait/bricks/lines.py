"""Scale the merged change by depth: shallow layers keep little of it, deep ones more (LiNeS).

result = base + (alpha + beta * l / (L - 1)) * change for layer l of L, counted from 0 within its slice. Tensors before the layers
count as the first one, tensors after them as the last.

For merges that lose what the base could do: shallow layers hold what all tasks share. The paper sets alpha so that the size of
the change stays, which for a plain sum of n models is 1 / n, and chooses beta on held-out data; alpha + beta = 1 leaves the last
layer as it is.

Reference: Wang et al., LiNeS: Post-training Layer Scaling, https://arxiv.org/abs/2410.17146
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.brick import brick
from plait.lazy import Tensor
from plait.method import param
from plait.ops.pieces import Piece


@dataclass(frozen=True)
class Params:
    alpha: float = param("Factor in the first layer.", default=0.5)
    beta: float = param("What is added to it up to the last layer.", default=0.5)


@brick(Params, at="post")
def lines(piece: Piece, p: Params) -> Tensor:
    assert piece.merged is not None
    return piece.merged * (p.alpha + p.beta * piece.depth)
