"""The largest entries of each block of a row: n:m sparsity, which spreads what is kept evenly."""

from __future__ import annotations

from plait.lazy import Tensor, torch


def largest_of_blocks(magnitude: Tensor, keep: int, block: int) -> Tensor:
    """1 for the `keep` largest of every `block` entries in a row, 0 elsewhere; like `magnitude` [rows, columns], not negative.

    Blocks begin at the first column. A shorter one at the end keeps its share, rounded up. Zeros are never kept; equal
    magnitudes are taken in the order of their place. `keep` and `block` are at least 1.
    """
    rows, columns = magnitude.shape
    rest = -columns % block
    x = torch.nn.functional.pad(magnitude, (0, rest)).reshape(rows, -1, block)
    order = x.argsort(dim=-1, descending=True, stable=True)
    quota = torch.full((x.shape[1], 1), keep, device=x.device)
    quota[-1:] = -(-keep * (block - rest) // block)
    ranks = torch.arange(block, device=x.device)
    chosen = torch.zeros_like(x).scatter_(-1, order, (ranks < quota).to(x.dtype).expand_as(x))
    return chosen.reshape(rows, -1)[:, :columns] * magnitude.sign()
