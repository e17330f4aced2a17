"""Which of its parents' layers a layer is, when it is not the one whose place it has. Looks at a few rows of each matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plait.diff.comparison import Comparison
from plait.diff.sides import Side

#: module, and a layer's number or the name of a tensor outside of the layers
Place = tuple[str, int | str]
ROWS = 8  # of each matrix
COLUMNS = 4096
ALIKE = 0.9


def lookalikes(found: Comparison, layers: Sequence[Place]) -> dict[Place, tuple[str, int, float]]:
    """For each of these layers of the merge the parent, the layer there and the cosine, where one is above `ALIKE`.

    Holds `ROWS` rows of every matrix of one model at a time.
    """
    made = _samples(found, found.sides[-1], {place[0] for place in layers})
    best: dict[Place, tuple[str, int, float]] = {}
    for side in found.sides[:-1]:
        theirs = _samples(found, side, {place[0] for place in layers})
        for module, layer in layers:
            own = made.get((module, layer))
            for (there, number), sample in theirs.items():
                if own is None or there != module or sample.shape != own.shape or number == layer:
                    continue
                cosine = float(torch.nn.functional.cosine_similarity(own, sample, dim=0))
                if cosine > max(ALIKE, best.get((module, layer), ("", 0, 0.0))[2]) and isinstance(number, int):
                    best[module, layer] = (side.name, number, cosine)
    return best


def _samples(found: Comparison, side: Side, modules: set[str]) -> dict[Place, torch.Tensor]:
    """The first rows of every matrix of each layer, one after the other."""
    parts: dict[Place, list[torch.Tensor]] = {}
    for m in found.tensors:
        if m.layer is None or m.module not in modules or m.pair.columns < 2 or not m.sums.finite:
            continue
        rows = side.checkpoint.read(m.pair.name, (0, min(ROWS, m.pair.rows)))
        parts.setdefault((m.module, m.layer), []).append(rows[:, :COLUMNS].float().reshape(-1))
    return {place: torch.cat(found) for place, found in parts.items()}
