"""The mean of all rows of the model.

Reference: Hewitt, Initializing New Word Embeddings for Pretrained Language Models, https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

from plait.lazy import Tensor
from plait.tokens.space import Space


def mean(space: Space) -> Tensor:
    return space.mean().float().expand(space.count, -1).clone()
