"""The numbers of one tensor, as sums: what is added over pieces, tensors, layers and kinds gives the numbers of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Square = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over entries of the first model x and the deltas d_1 .. d_k of the others."""

    entries: int
    gram: Square  # [1 + k, 1 + k]: inner products of x, d_1, .., d_k
    changed: Square  # [k, k]: entries in which both deltas are not zero; on the diagonal, in which one is not
    agree: Square  # [k, k]: of these, entries in which they have one sign
    conflict: int  # entries in which two deltas have different signs
    contested: int  # entries in which at least two deltas are not zero
    largest: tuple[float, ...]  # [k]: max |d|
    rounded: tuple[int, ...]  # [k]: entries that are those of the first model, or these rounded to the other's dtype

    @property
    def models(self) -> int:
        """How many models besides the first."""
        return len(self.largest)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.gram).all())

    @property
    def norm(self) -> float:
        """||x|| of the first model."""
        return math.sqrt(max(self.gram[0, 0], 0.0))

    def change(self, i: int) -> float:
        """||d_i|| / ||x||: 0 for equal tensors, infinite where x is zero and the other is not."""
        size = math.sqrt(max(self.gram[i + 1, i + 1], 0.0))
        return size / self.norm if self.norm else math.inf if size else 0.0

    def size(self, i: int) -> float:
        """||x + d_i||, the other model's norm."""
        g = self.gram
        return math.sqrt(max(g[0, 0] + 2 * g[0, i + 1] + g[i + 1, i + 1], 0.0))

    def cosine(self, i: int) -> float:
        """Cosine of the angle between the first model and the other; 1 if both are zero, 0 if one is."""
        return _ratio(self.gram[0, 0] + self.gram[0, i + 1], self.norm * self.size(i), both=not self.size(i))

    def cosine_between(self, i: int, j: int) -> float:
        """Cosine of the angle between two of all models (0 is the first); 1 if both are zero, 0 if one is."""
        one, other = self._place(i), self._place(j)
        sizes = [math.sqrt(max(float(v @ self.gram @ v), 0.0)) for v in (one, other)]
        return _ratio(float(one @ self.gram @ other), sizes[0] * sizes[1], both=not any(sizes))

    def carried(self, i: int, j: int) -> float | None:
        """How many times the delta of model i is in that of model j, <d_i, d_j> / |d_i|^2; None if model i changed nothing."""
        own = float(self.gram[i, i]) if i else 0.0
        return float(self.gram[i, j]) / own if own else None

    def delta_cosine(self, i: int, j: int) -> float | None:
        """Cosine of the angle between two deltas; None if one of them is zero."""
        norms = math.sqrt(max(self.gram[i + 1, i + 1] * self.gram[j + 1, j + 1], 0.0))
        return max(-1.0, min(1.0, float(self.gram[i + 1, j + 1]) / norms)) if norms else None

    def sign_agreement(self, i: int, j: int) -> float | None:
        """Of the entries that both models change, the share that they move the same way; None if there is none."""
        both = self.changed[i, j]
        return float(self.agree[i, j] / both) if both else None

    def unchanged(self, i: int) -> float:
        """The share of entries that are equal."""
        return 1 - float(self.changed[i, i]) / self.entries if self.entries else 1.0

    def conflict_share(self) -> float | None:
        """Of the entries that at least two models change, the share in which signs differ; None if there is none."""
        return self.conflict / self.contested if self.contested else None

    def distance(self, i: int, j: int) -> float:
        """Distance between two of all models (0 is the first), relative to the first one's norm."""
        v = self._place(i) - self._place(j)
        apart = math.sqrt(max(float(v @ self.gram @ v), 0.0))
        return apart / self.norm if self.norm else math.inf if apart else 0.0

    def _place(self, i: int) -> Square:
        """Model i of all models as the sum x + d_i."""
        v = np.zeros(self.models + 1)
        v[[0, i]] = 1.0
        return v


def _ratio(part: float, whole: float, both: bool) -> float:
    return max(-1.0, min(1.0, float(part) / whole)) if whole else 1.0 if both else 0.0


def add(sums: Iterable[Sums]) -> Sums | None:
    """The sums of several tensors together; None for no tensor. Tensors that are not finite are left out."""
    found = [each for each in sums if each.finite]
    if not found:
        return None
    return Sums(
        entries=sum(s.entries for s in found),
        gram=_exact([s.gram for s in found]),
        changed=_exact([s.changed for s in found]),
        agree=_exact([s.agree for s in found]),
        conflict=sum(s.conflict for s in found),
        contested=sum(s.contested for s in found),
        largest=tuple(map(max, zip(*(s.largest for s in found), strict=True))),
        rounded=tuple(map(sum, zip(*(s.rounded for s in found), strict=True))),
    )


def _exact(parts: list[Square]) -> Square:
    """Added so that the order of the parts does not matter."""
    columns = zip(*(part.ravel() for part in parts), strict=True)
    return np.array([math.fsum(column) for column in columns]).reshape(parts[0].shape)
