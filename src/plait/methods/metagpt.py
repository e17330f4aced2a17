"""Average the models' differences, each weighted by its own squared norm (MetaGPT).

1. delta_i = x_i - base; w_i = |delta_i|^2 / sum_j |delta_j|^2, with the norms of the whole model, as in the paper, or with `over:
   tensor` those of each tensor by itself, which saves the pass over all tensors before the first is written.
2. result = base + lambda * sum_i w_i delta_i.

With these weights the loss, taken as quadratic with nearly orthogonal differences, is least on average over the models. No
weights to choose: a first try for fine-tunes of unequal strength, where the one that moved most counts most. Every tensor is
treated alike.

Reference: Zhou et al., MetaGPT, https://arxiv.org/abs/2406.11385
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.method import Survey, method, param
from plait.ops.cutoff import Chain
from plait.ops.gram import gram
from plait.ops.pieces import Pieces


@dataclass(frozen=True)
class Params:
    over: str = param("Where the norms are taken.", default="model", choices=("model", "tensor"))
    lambda_: float = param("Scale of the whole sum; 1 in the paper.", default=1.0)


def _first(pieces: Pieces, p: Params) -> list[float]:
    return list(pieces.survey) if p.over == "model" else _squares(pieces)


def _squares(pieces: Pieces) -> list[float]:
    return [products[i] for i, products in enumerate(gram(pieces))]


_survey = Survey(lambda p: "norms" if p.over == "model" else None, lambda tensors, _: _squares(Chain(tensors)))


@method(Params, space="delta", base="required", first=_first, gives="coefficients", survey=_survey, raw=True)
def metagpt(p: Params, squares: list[float]) -> list[float]:
    divisor = sum(squares) or 1.0  # where nothing changed, any weights do
    return [p.lambda_ * square / divisor for square in squares]
