"""Orthogonal matching pursuit: a few atoms of a dictionary whose weighted sum comes closest to a target, chosen one by one.

    r = x;  k times:  j = the atom with the largest |<r, d_j>|,  r = x - its projection on all chosen atoms

For a block of targets at once. The chosen atoms are made orthonormal as they come (q_s), and what is kept of q_s is its inner
product with every atom: then a step costs no product with the dictionary, only rows of its Gram matrix. Dictionaries whose Gram
matrix would be too large are multiplied instead.

Reference: Goddard, Fernandes Neto, Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit,
https://arxiv.org/abs/2506.06607
"""

from __future__ import annotations

import threading

from plait.lazy import Tensor, torch

GRAM = 1 << 15  # atoms up to which their Gram matrix is kept: 4.3 GB
HELD = 1 << 26  # entries that a block of targets may hold
_alone = threading.Lock()  # one Gram matrix at a time
TINY = 1e-6  # of an atom's squared length: what is left of one that the chosen ones span


def pursue(targets: Tensor, atoms: Tensor, k: int, gram: bool | None = None) -> tuple[Tensor, Tensor]:
    """(chosen atoms [targets, k], their coefficients [targets, k]); float32 in, coefficients float64.

    With fewer than `k` atoms, or where those chosen span all the others, the rest of a row has coefficient 0.
    """
    count, k = len(targets), min(k, len(atoms))
    if not k or not count:
        return torch.zeros((count, k), dtype=torch.int64), torch.zeros((count, k), dtype=torch.float64)
    with _alone:
        inner = atoms @ atoms.T if (len(atoms) <= GRAM if gram is None else gram) else None
        return _pursued(targets, atoms, k, inner)


def held_nbytes(atoms: int, targets: int, k: int) -> int:
    """Bytes that are held besides the atoms and the targets."""
    return 4 * (min(HELD, targets * atoms * (k + 2)) + (atoms * atoms if atoms <= GRAM else 0) + 4 * targets * k)


def _pursued(targets: Tensor, atoms: Tensor, k: int, inner: Tensor | None) -> tuple[Tensor, Tensor]:
    count = len(targets)
    chosen = torch.zeros((count, k), dtype=torch.int64)
    step = max(1, HELD // (len(atoms) * (k + 2) if inner is not None else len(atoms) + (k + 2) * atoms.shape[1]))
    live = torch.zeros((count, k), dtype=torch.bool)
    for i in range(0, count, step):
        block = slice(i, i + step)
        chosen[block], live[block] = _block(targets[block], atoms, k, inner)
    coefficients = torch.zeros((count, k), dtype=torch.float64)
    small = max(1, HELD // (4 * k * atoms.shape[1]))
    for i in range(0, count, small):
        block = slice(i, i + small)
        coefficients[block] = _solved(targets[block], atoms, chosen[block], live[block])
    return chosen, coefficients


def _block(targets: Tensor, atoms: Tensor, k: int, inner: Tensor | None) -> tuple[Tensor, Tensor]:
    """The chosen atoms of some targets, and which of them count."""
    rows, at = len(targets), torch.arange(len(targets))
    left = targets @ atoms.T  # inner products of the residual with every atom
    lengths = (atoms * atoms).sum(1)
    kept = torch.zeros((rows, k, len(atoms) if inner is not None else atoms.shape[1]))  # q_s: with atoms, or itself
    chosen, live = torch.zeros((rows, k), dtype=torch.int64), torch.zeros((rows, k), dtype=torch.bool)
    free = torch.ones_like(left, dtype=torch.bool)
    for s in range(k):
        size = left.abs().masked_fill_(~free, -1.0)
        j = size.argmax(1)
        before = kept[:, :s]
        if inner is not None:
            along = before[at, :, j]  # <d_j, q_i>
            new = inner[j] - torch.bmm(along[:, None], before)[:, 0]
        else:
            along = torch.bmm(before, atoms[j][:, :, None])[:, :, 0]
            new = atoms[j] - torch.bmm(along[:, None], before)[:, 0]
        rest = lengths[j] - (along * along).sum(1)
        good = (rest > TINY * lengths[j]) & (size[at, j] > 0)
        scale = torch.where(good, rest.clamp_min(1e-30).rsqrt(), torch.zeros(()))
        kept[:, s] = new * scale[:, None]
        products = kept[:, s] if inner is not None else kept[:, s] @ atoms.T
        left -= (left[at, j] * scale)[:, None] * products
        chosen[:, s], live[:, s] = j, good
        free[at, j] = False
    return chosen, live


def _solved(targets: Tensor, atoms: Tensor, chosen: Tensor, live: Tensor) -> Tensor:
    """The coefficients of the chosen atoms by least squares, float64; 0 for those that do not count."""
    picked = atoms[chosen].double() * live[:, :, None]
    square = picked @ picked.transpose(1, 2) + torch.diag_embed((~live).double())
    right = picked @ targets.double()[:, :, None]
    factor, info = torch.linalg.cholesky_ex(square)
    if bool((info > 0).any()):  # nearly dependent atoms
        inverse: Tensor = torch.linalg.pinv(square, hermitian=True)
        return (inverse @ right)[:, :, 0]
    solved: Tensor = torch.cholesky_solve(right, factor)
    return solved[:, :, 0]
