"""Orthogonal matching pursuit: k shared tokens that approximate the token in the donor's space, with the model's rows of them.

Reference: Goddard, Fernandes Neto, Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit,
https://arxiv.org/abs/2506.06607
"""

from plait.lazy import Tensor, torch
from plait.tokens.pursuit import pursue
from plait.tokens.space import Space

DONOR = True


def omp(space: Space) -> Tensor:
    mine, theirs = space.anchors()
    chosen, weights = pursue(space.targets(), theirs, space.options.k)
    out = torch.empty((space.count, space.hidden))
    for start, stop in space.blocks(chosen.shape[1] * space.hidden):
        rows = mine[chosen[start:stop]].double()
        out[start:stop] = torch.bmm(weights[start:stop, None], rows)[:, 0].float()
    return out
