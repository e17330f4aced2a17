"""Drawn from the normal distribution with the mean and the covariance of the model's rows.

With fewer rows than columns the covariance is singular; its root by eigenvalues is there all the same.

Reference: Hewitt, Initializing New Word Embeddings for Pretrained Language Models, https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

from plait.lazy import Tensor, torch
from plait.ops.random import normal
from plait.tokens.space import Space


def john_hewitt(space: Space) -> Tensor:
    mean, covariance = space.moments()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    drawn = normal(space.options.seed, space.tensor, 0, 0, space.count * space.hidden).reshape(space.count, -1)
    made: Tensor = mean + drawn.double() @ root.T
    return made.float()
