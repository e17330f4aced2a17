"""Average the models' differences by estimates of what their layers are fed with (ACE-Merging).

1. delta_i = x_i - base, a matrix [out, in]; E_i = the same less its mean row, transposed, times itself: E_i = c_i^T c_i.
2. g = variance / mean^2 over the models of log |delta_i|^2 (n - 1 in the variance). Where g > `threshold` the models are
   heterogeneous.
3. R_i = E_i + ridge; where the models are heterogeneous, E_i and R_i are divided by the trace of E_i.
4. t = (sum_i delta_i R_i) (sum_i R_i + 1 m^T)^-1, with m the mean row of sum_i E_i, a prior that all models share.
5. Where heterogeneous: T = t + sum_i delta_i (E_i - mean of the R_i) = U diag(s) V^T, and t grows by mean(s) U V^T over the
   leading `share` of the singular values.
6. result = base + lambda * t.

For models from very different tasks, language models among them. `ridge` is absolute: the paper has 1e-5, 2e-4 for RoBERTa-base
and 4e-2 for GPT-2; it is raised to 1e-12 of the trace if it is less. Vectors, embeddings, heads and routers get lambda * the
mean of the delta_i; a model that did not change takes no part. Costs models + 1 products and a solve for each matrix, of the
smaller of `in` and models * `out`, and a decomposition where heterogeneous: about 4 s, or 10 s, for three models and 2048 x
2048 on one core, growing with the cube.

Reference: Xu et al., ACE-Merging, https://arxiv.org/abs/2603.02945
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plait.lazy import Tensor, torch
from plait.matrices import by_matrix
from plait.method import method, param
from plait.ops.pieces import Piece
from plait.ops.spectral import row_basis, svd


@dataclass(frozen=True)
class Params:
    ridge: float = param(
        "Added to the diagonal of each estimate, above 0, in squared units of the weights.", default=1e-5, low=0
    )
    threshold: float = param("Spread of the models' sizes above which they are heterogeneous.", default=0.3, low=0)
    share: float = param("Share of the directions that step 5 strengthens, in [0, 1].", default=0.3, low=0, high=1)
    lambda_: float = param("Scale of the whole change.", default=1.0)

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ValueError(f"ridge must be above 0, not {self.ridge:g}", "write 1e-5, as the paper has")


@method(Params, space="delta", base="required", unit="matrix", breaks=("equal models give that model",))
def ace(piece: Piece, p: Params) -> Tensor:
    n = len(piece.models)
    return by_matrix(piece, lambda matrix: _merge(matrix.models, p), [1 / n] * n).mul_(p.lambda_)


def _merge(models: list[Tensor], p: Params) -> Tensor:
    rows, columns = models[0].shape
    deltas = [x for x in models if x.any()]
    if not deltas:
        return torch.zeros_like(models[0])
    basis = row_basis(deltas)
    if basis is not None:
        deltas = [x @ basis for x in deltas]
    one = deltas[0].new_ones(columns) if basis is None else basis.sum(0)
    heterogeneous = _heterogeneous(deltas, p.threshold)

    estimates = deltas[0].new_zeros(len(one), len(one))  # the sum of the E_i
    moved, weighed, ridges = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0]), 0.0
    for x in deltas:
        centred = x - x.mean(0)
        estimate = centred.mT @ centred
        trace = float(estimate.trace())
        ridge, unit = max(p.ridge, 1e-12 * trace), (trace or 1.0) if heterogeneous else 1.0
        estimate /= unit
        estimates += estimate
        moved += x @ estimate
        weighed.add_(x, alpha=ridge / unit)
        ridges += ridge / unit
    weighed += moved

    prior = estimates @ one / columns
    estimates.diagonal().add_(ridges)  # now the sum of the R_i
    factor = torch.linalg.cholesky(estimates)
    t = torch.cholesky_solve(weighed.mT, factor).mT
    z = torch.cholesky_solve(prior[:, None], factor)[:, 0]
    t -= torch.outer(t @ one, z) / (1 + z @ one)  # Sherman and Morrison: the prior has rank one
    if heterogeneous:
        target = t + moved - torch.stack(deltas).sum(0) @ estimates / len(deltas)
        u, s, v = svd(target, math.floor(p.share * min(rows, columns) + 1e-9))
        t += u @ v.mT * (s.sum() / max(1, len(s)))
    return t if basis is None else t @ basis.mT


def _heterogeneous(deltas: list[Tensor], threshold: float) -> bool:
    logs = torch.stack([x.square().sum().log() for x in deltas])
    return len(deltas) > 1 and bool(logs.var() > threshold * logs.mean().square())
