"""Random sparsification of deltas (DARE)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from plait.ops.pieces import Piece, Pieces
from plait.ops.rescale import l1_factors


def drop(piece: Piece, density: Sequence[float]) -> list[Tensor]:
    """Each model with every entry kept with probability density[i], independently; zeros elsewhere.

    Reference: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099
    """
    return [
        x if d >= 1 else x * (piece.uniform(i) < d) for i, (x, d) in enumerate(zip(piece.models, density, strict=True))
    ]


def drop_factors(pieces: Pieces, density: Sequence[float], rescale: bool, rescale_by: str) -> list[float]:
    """How much what `drop` leaves is enlarged: by its loss of L1 norm ("l1"), or by 1 / density ("density", as in the paper)."""
    if not rescale:
        return [1.0] * len(density)
    if rescale_by == "density":
        return [1 / d if d > 0 else 1.0 for d in density]
    return l1_factors(pieces, lambda piece: drop(piece, density))
