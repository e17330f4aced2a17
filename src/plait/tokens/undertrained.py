"""Tokens that were hardly trained: their rows are short, or lie as the shortest ones do.

Of each matrix, the rows whose length is below the 1 % quantile, and those whose cosine to the mean of these is above the 99 %
quantile.

Reference: Land, Bartolo, Fishing for Magikarp: Automatically Detecting Under-trained Tokens in Large Language Models,
https://arxiv.org/abs/2405.05417
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plait.lazy import torch
from plait.vocabulary.realign import Matrix

QUANTILE = 0.01
BLOCK = 1 << 24  # entries


def undertrained(matrix: Matrix) -> NDArray[np.bool_]:
    """For each row of a matrix whether its token was hardly trained."""
    rows, columns = matrix.spec.matrix
    cuts = [(i, min(i + max(1, BLOCK // columns), rows)) for i in range(0, rows, max(1, BLOCK // columns))]
    lengths = torch.cat([matrix.rows(np.arange(*cut)).double().norm(dim=1) for cut in cuts]).numpy()
    short = lengths <= np.quantile(lengths, QUANTILE)
    mean = matrix.rows(np.flatnonzero(short)).double().mean(0)
    parts = [torch.nn.functional.cosine_similarity(matrix.rows(np.arange(*cut)).double(), mean, dim=1) for cut in cuts]
    alike = torch.cat(parts).numpy()
    found: NDArray[np.bool_] = short | (alike > np.quantile(alike, 1 - QUANTILE))
    return found
