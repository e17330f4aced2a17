"""Keep the middle of each difference: drop the largest changes and the smallest; then elect a sign for each entry as TIES does.

1. delta_i = x_i - base. With N entries in the tensor, the floor(gamma * N) of largest magnitude are dropped, of the rest the
   floor(density * N) of largest magnitude are kept. If density + gamma > 1, fewer large ones are dropped; a density of 1 drops
   nothing.
2. With `rescale` what is left is enlarged to the old L1 norm of the tensor.
3. The sign of an entry is that of sum_i w_i delta_i; deltas of the other sign drop out of that entry.
4. result = base + lambda * the weighted sum of the rest, divided by the weights that took part if `normalize`, unless
   they sum to 0.

Equal magnitudes are taken in the order of their place, the first as if it were the largest.

Reference: Davari and Belilovsky, Model Breadcrumbs, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from plait.lazy import Tensor
from plait.method import method
from plait.methods.breadcrumbs import Params, first, middle
from plait.ops.combine import elected_sum
from plait.ops.pieces import Piece


@method(Params, space="delta", base="required", inputs=(0, None), first=first, raw=True, idle=("int8_mask",))
def breadcrumbs_ties(piece: Piece, p: Params) -> Tensor:
    bands, factors = piece.whole
    enlarged = [x if f == 1 else x * f for x, f in zip(middle(piece, bands), factors, strict=True)]
    return elected_sum(enlarged, p.weight, p.normalize, p.lambda_)
