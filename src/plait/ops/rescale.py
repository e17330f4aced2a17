"""How much to enlarge what a sparsified delta has left."""

from __future__ import annotations

from collections.abc import Callable

from plait import kernels
from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops.pieces import Piece, Pieces, added, raw_sums, row_sums, stored, total


def l1_factors(pieces: Pieces, sparsify: Callable[[Piece], list[Tensor]]) -> list[float]:
    """For each model sum|delta| / sum|what is left of it|, over the whole tensor; 1 where either sum is below 1e-7.

    This keeps each delta's L1 norm. It is not the 1 / density of the DARE paper: that one keeps the expectation.
    """

    def norms(block: list[Tensor]) -> Tensor:
        if kernels.suit(*block):
            return torch.tensor([kernels.l1(x) for x in block], dtype=torch.float64)
        return torch.cat([row_sums(x.abs().double()) for x in block])

    parts: list[list[float]] = []
    for piece in pieces:
        if stored(piece.models) is None:
            parts = [total(pieces, norms, of=lambda piece: [*piece.models, *sparsify(piece)]).tolist()]
            break
        parts += raw_sums(stored(sparsify(piece)) or [], fused.LENGTHS)
    sums = added(parts)
    whole, left = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    return [w / k if w >= 1e-7 and k >= 1e-7 else 1.0 for w, k in zip(whole, left, strict=True)]
