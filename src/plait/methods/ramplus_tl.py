"""Average each entry over the models that changed it, and enlarge what only one model changed.

1. delta_i = x_i - base is active in an entry where |delta_i| > epsilon. The active entries of a model are shared where another
   model is active too, else unique.
2. lambda_i = 1 + r * min(shared_i / unique_i, alpha), from the counts of model i in this tensor (the `tl` in the name is for
   tensor-local), as mergekit has it, by default, or with `over: model` from those of the whole model, as in the paper.
3. result = base + the mean of the active deltas; a unique one is taken times lambda_i.

Reference: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.method import Survey, method, param
from plait.methods.ram import active
from plait.ops.cutoff import Chain
from plait.ops.pieces import Piece, Pieces, total


@dataclass(frozen=True)
class Params:
    r: float = param("How strongly unique changes are enlarged.", default=0.1, low=0)
    alpha: float = param("Largest ratio of shared to unique entries that counts.", default=0.2, low=0)
    epsilon: float = param("Changes up to this, in units of the weights, do not count.", default=1e-5, low=0)
    over: str = param("Where active entries are counted.", default="tensor", choices=("tensor", "model"))


def _first(pieces: Pieces, p: Params) -> list[float]:
    return list(pieces.survey) if p.over == "model" else _enlarge(pieces, p)


def _enlarge(pieces: Pieces, p: Params) -> list[float]:
    def counts(block: list[Tensor]) -> Tensor:
        masks = torch.stack(active(block, p.epsilon))
        unique = masks * torch.eq(masks.sum(0), 1)
        return torch.stack([masks.sum(1, dtype=torch.float64), unique.sum(1, dtype=torch.float64)])

    every, unique = total(pieces, counts).tolist()
    ratios = [(e - u) / max(u, p.epsilon, 1e-300) for e, u in zip(every, unique, strict=True)]
    return [1 + p.r * min(ratio, p.alpha) for ratio in ratios]


_survey = Survey(lambda p: p if p.over == "model" else None, lambda tensors, p: _enlarge(Chain(tensors), p))


@method(Params, space="delta", base="required", inputs=(0, None), first=_first, survey=_survey)
def ramplus_tl(piece: Piece, p: Params) -> Tensor:
    masks = active(piece.models, p.epsilon)
    count = sum(masks[1:], masks[0].clone())
    unique = torch.eq(count, 1, out=torch.empty_like(count))
    merged = torch.zeros_like(count)
    for delta, mask, enlarge in zip(piece.models, masks, piece.whole, strict=True):
        merged += delta * mask * (1 + (enlarge - 1) * unique)
    return merged / count.clamp_(min=1)
