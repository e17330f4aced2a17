"""Random sparsification of deltas: by chance alone (DARE), or by chance and magnitude (DELLA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from plait import kernels
from plait.kernels import fused
from plait.lazy import Tensor, torch
from plait.ops.pieces import Piece, Pieces, stored
from plait.ops.random import keys
from plait.ops.rescale import l1_factors


def drop(piece: Piece, density: Sequence[float], remember: bool = False) -> list[Tensor]:
    """Each model with every entry kept with probability density[i] (as float32), independently; zeros elsewhere.

    `remember`: the same tensor will be asked for again.

    Reference: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099
    """
    if raw := stored(piece.models):
        each = enumerate(zip(raw, density, strict=True))
        return cast(list[Tensor], [x if d >= 1 else x.drop(d, _keys(piece, i), remember) for i, (x, d) in each])
    kept = []
    for i, (x, d) in enumerate(zip(piece.models, density, strict=True)):
        if d >= 1:
            kept.append(x)
        elif kernels.suit(x):
            kept.append(kernels.drop(x, piece.uniform(i), d))
        else:
            kept.append(x * piece.uniform(i).lt_(d))
    return kept


def drop_factors(pieces: Pieces, density: Sequence[float], rescale: bool, rescale_by: str) -> list[float]:
    """How much what `drop` leaves is enlarged: by its loss of L1 norm ("l1"), or by 1 / density ("density", as in the paper)."""
    if not rescale:
        return [1.0] * len(density)
    if rescale_by == "density":
        return [1 / d if d > 0 else 1.0 for d in density]
    return l1_factors(pieces, lambda piece: drop(piece, density, remember=True))


def drop_by_rank(piece: Piece, density: Sequence[float], epsilon: Sequence[float], divide: bool) -> list[Tensor]:
    """Each model with entries kept at random, the larger ones of a row more probably; zeros elsewhere.

    The probability is density[i] - epsilon[i] + 2 * epsilon[i] * rank, with the rank of an entry's magnitude in its row from 0
    (smallest) to 1; equal magnitudes are ranked by their place, and a row of one entry has rank 1/2. A density of 1 or more
    keeps everything, of 0 or less nothing. With `divide` what is kept is divided by its own probability. Wants whole rows.

    Reference: Deep et al., DELLA-Merging, https://arxiv.org/abs/2406.11617
    """
    if raw := stored(piece.models):
        chances = enumerate(zip(raw, density, epsilon, strict=True))
        return cast(list[Tensor], [_drop_raw(x, d, e, _keys(piece, i)) for i, (x, d, e) in chances])
    dropped = []
    for i, (x, d, e) in enumerate(zip(piece.models, density, epsilon, strict=True)):
        if d >= 1 or d <= 0:
            dropped.append(x if d >= 1 else x * 0.0)
            continue
        chance = _ranks(x).mul_(2 * e).add_(d - e)  # float64
        kept = x * torch.lt(piece.uniform(i).double(), chance, out=torch.empty_like(chance)).to(x.dtype)
        dropped.append((kept / chance).to(x.dtype) if divide else kept)
    return dropped


def _keys(piece: Piece, model: int) -> tuple[int, int]:
    return keys(piece.seed, piece.tensor, model, 0)


def _drop_raw(x: fused.Raw, density: float, epsilon: float, own: tuple[int, int]) -> fused.Raw:
    if density >= 1 or density <= 0:
        return x if density >= 1 else x * 0.0
    return fused.ranked(x, density - epsilon, 2 * epsilon, own)


def _ranks(x: Tensor) -> Tensor:
    """The rank of each entry's magnitude in its row, from 0 to 1, float64."""
    columns = x.shape[-1]
    if columns == 1:
        return torch.full_like(x, 0.5, dtype=torch.float64)
    places = torch.arange(columns, device=x.device)
    keys = x.float().abs().contiguous().view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(places)
    if x.device.type == "cpu":
        keys.numpy().sort(axis=-1)  # in place, and several times faster than torch's; no two keys are equal
    else:
        keys = keys.sort(dim=-1).values
    order = keys.bitwise_and_((1 << 32) - 1)
    ranks = places.double().div_(columns - 1)
    return torch.empty(x.shape, dtype=torch.float64, device=x.device).scatter_(-1, order, ranks.expand_as(x))
