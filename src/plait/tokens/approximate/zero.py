"""Zeros: the row says nothing until it is trained."""

from plait.lazy import Tensor, torch
from plait.tokens.space import Space


def zero(space: Space) -> Tensor:
    return torch.zeros((space.count, space.hidden))
