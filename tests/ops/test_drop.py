"""Random sparsification."""

from __future__ import annotations

import torch

from ops.cut import Cut
from plait.ops.drop import drop, drop_by_rank, drop_factors
from plait.ops.pieces import Piece


def test_what_is_kept_is_untouched():
    """Kept entries are the model's to the bit, the others 0; a density of 1 gives the model itself."""
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    piece = Piece([x, x], None, tensor="w")
    dropped, whole = drop(piece, [0.4, 1.0])
    assert whole is x
    assert ((dropped == x) | (dropped == 0)).all()
    assert 0.35 < (dropped != 0).double().mean() < 0.45
    ranked, whole = drop_by_rank(piece, [0.4, 1.0], [0.2, 0.2], divide=False)
    assert whole is x
    assert ((ranked == x) | (ranked == 0)).all()


def test_what_is_kept_does_not_depend_on_the_piece():
    """Rows dropped by themselves lose the entries that they lose in the whole."""
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    rows = Piece([x[10:20]], None, row=10, tensor="w")
    assert torch.equal(drop(rows, [0.5])[0], drop(Piece([x], None, tensor="w"), [0.5])[0][10:20])
    ranked = drop_by_rank(Piece([x], None, tensor="w"), [0.5], [0.3], divide=True)[0]
    assert torch.equal(drop_by_rank(rows, [0.5], [0.3], divide=True)[0], ranked[10:20])


def test_equal_magnitudes_are_ranked_by_place():
    """In a row of equals the later entries are kept more often, as ranks 0, 1/2 and 1 say (5 standard deviations of 20,000)."""
    x = torch.ones(20_000, 3)
    kept = drop_by_rank(Piece([x], None, tensor="w"), [0.5], [0.4], divide=False)[0].double().mean(0)
    assert (kept - torch.tensor([0.1, 0.5, 0.9])).abs().max() < 5 * 0.5 / 20_000**0.5


def test_factors():
    """No rescaling is 1, by density 1 / density (1 for 0), by l1 what brings the norm back."""
    pieces = Cut([torch.ones(20, 30)] * 2)
    assert drop_factors(pieces, [0.5, 0.0], False, "l1") == [1.0, 1.0]
    assert drop_factors(pieces, [0.5, 0.0], True, "density") == [2.0, 1.0]
    l1, nothing = drop_factors(pieces, [0.5, 0.0], True, "l1")
    left = drop(Piece(pieces.models, None), [0.5, 0.0])[0].sum()
    assert l1 == 600 / float(left)
    assert nothing == 1.0
