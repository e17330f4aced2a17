"""What does not fit, collected while steps are made, so that all of it is told at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.errors import PlaitError, PlanError
from plait.strands import Model


@dataclass
class Findings:
    """Problems, grouped where one cause has many tensors; and notes, each once."""

    models: Sequence[Model]
    notes: dict[str, None] = field(default_factory=dict)
    _missing: defaultdict[tuple[int, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    _shapes: defaultdict[tuple[bool, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    _others: dict[str, PlaitError] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.notes[text] = None

    def problem(self, error: PlaitError) -> None:
        """An error that many tensors may share is told once."""
        self._others.setdefault(f"{error.where} {error.what}", error)

    def missing(self, model: int, name: str, other: int) -> None:
        """`model` lacks the tensor `name`, which `other` has."""
        self._missing[model, other].append(name)

    def shapes(self, name: str, found: str, vocabulary: bool) -> None:
        """The models differ in the shape of an output tensor; `found` says how."""
        self._shapes[vocabulary, found].append(name)

    def problems(self) -> list[PlaitError]:
        found = list(self._others.values())
        for (model, other), names in self._missing.items():
            found.append(
                PlanError(
                    f"{self.models[model].ref} lacks {len(names)} tensors that {self.models[other].ref} has",
                    wanted="the same tensors in each model",
                    found="no " + some(names),
                    do="leave out the model that differs, or pass --allow-crimes to merge what fits and keep the base's rest",
                )
            )
        for (vocabulary, shapes), names in self._shapes.items():
            do = "merge models of one size"
            if vocabulary:
                do = "write tokenizer: {source: base} (or union), or pass --unsafe-truncate-embeddings to cut to the shortest"
            what = "the models differ in the shape of " + some(names)
            found.append(PlanError(what, wanted="one shape", found=shapes, do=do))
        return found


def some(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
