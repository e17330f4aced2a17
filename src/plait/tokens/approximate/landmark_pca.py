"""The affine map between the spaces that shared tokens give, along the k directions in which the donor's rows differ most.

    row = m' + (x - m) V_k S_k^-1 U_k^T (R' - m'),   R - m = U S V^T

R, R' are the shared tokens' rows in the donor and the model, m and m' their means.
"""

from plait.lazy import Tensor, torch
from plait.tokens.space import Space

DONOR = True


def landmark_pca(space: Space) -> Tensor:
    mine, theirs = (rows.double() for rows in space.anchors())
    m, m_own = theirs.mean(0), mine.mean(0)
    values, vectors = torch.linalg.eigh((theirs - m).T @ (theirs - m))
    order = values.argsort(descending=True)[: space.options.k]
    values, vectors = values[order], vectors[:, order]
    kept = values > values[0].clamp_min(1e-300) * 1e-10
    basis = vectors[:, kept]
    onto = (basis.T @ (theirs - m).T @ (mine - m_own)) / values[kept][:, None]
    made: Tensor = m_own + (space.targets().double() - m) @ basis @ onto
    return made.float()
