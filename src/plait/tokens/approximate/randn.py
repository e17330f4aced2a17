"""Normal numbers with mean 0 and variance 1, from (seed, tensor, entry); `-nvs` gives another deviation."""

from plait.lazy import Tensor
from plait.ops.random import normal
from plait.tokens.space import Space


def randn(space: Space) -> Tensor:
    return normal(space.options.seed, space.tensor, 0, 0, space.count * space.hidden).reshape(space.count, space.hidden)
