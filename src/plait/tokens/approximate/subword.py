"""From the rows of the model's own tokens that the new token's text consists of.

`mean`, `sum`; `weighted_mean` counts the tokens 1, 2, 3, … from the one that matters least: for a row that is read the last token
matters most, for a row of the head, which says what comes next, the first one. `first_last` takes that one alone. A token without
text in the model's tokens has the mean of all rows.
"""

import numpy as np

from plait.lazy import Tensor, torch
from plait.tokens.space import Space

METHODS = ("mean", "sum", "weighted_mean", "first_last")


def subword(space: Space) -> Tensor:
    pieces, method = space.pieces(), space.options.subword_method
    out = torch.zeros((space.count, space.hidden))
    for i, ids in enumerate(pieces):
        if not len(ids):
            out[i] = space.mean().float()
            continue
        rows = space.own.rows(np.array(ids, np.int64)).double()
        ordered = rows.flip(0) if space.head else rows  # the one that matters most comes last
        if method == "first_last":
            made = ordered[-1]
        elif method == "sum":
            made = rows.sum(0)
        elif method == "weighted_mean":
            weights = torch.arange(1, len(rows) + 1, dtype=torch.float64)
            made = weights @ ordered / weights.sum()
        else:
            made = rows.mean(0)
        out[i] = made.float()
    return out
