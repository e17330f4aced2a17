"""What can go wrong, said so that a person can mend it.

Every error that a user can cause is a `PlaitError`: what was wanted, what was found, what to do, and where in the
recipe. The command line prints it and exits with 2; anything else that escapes is a bug of ours and exits with 1.

    PlaitError
    ├── RecipeError       the recipe's text, its keys, its values
    ├── ModelError        a model reference, or the files behind it
    ├── PlanError         recipe and models do not fit together
    ├── MergeError        found while weights are read or computed
    ├── OutputError       the output directory, its disk
    ├── PublishError      a model on its way to the Hub
    └── Problems          several of the above at once
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """A place in a text file; line and column count from 1, 0 when unknown."""

    path: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join([self.path, *(str(n) for n in (self.line, self.column) if n)])


class PlaitError(Exception):
    """An error that the user can mend. `what` is one sentence; the other parts are short phrases or None."""

    def __init__(
        self,
        what: str,
        *,
        wanted: str | None = None,
        found: str | None = None,
        do: str | None = None,
        where: Where | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.wanted, self.found, self.do, self.where = what, wanted, found, do, where

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [("wanted", self.wanted), ("found", self.found), ("do", self.do)]
        return "\n".join([head, *(f"  {label + ':':<8}{text}" for label, text in parts if text)])

    def as_json(self) -> dict[str, object]:
        place = {"path": self.where.path, "line": self.where.line, "column": self.where.column} if self.where else None
        return {"what": self.what, "wanted": self.wanted, "found": self.found, "do": self.do, "where": place}


class RecipeError(PlaitError):
    """The recipe's text, its keys or its values."""


class ModelError(PlaitError):
    """A model reference, or the files behind it."""


class PlanError(PlaitError):
    """Recipe and models do not fit together."""


class MergeError(PlaitError):
    """Found while weights were read or computed."""


class OutputError(PlaitError):
    """The output directory or its disk."""


class PublishError(PlaitError):
    """A model cannot go to the Hub."""


class Problems(PlaitError):  # noqa: N818
    """Several problems found together, each one a `PlaitError`, in the order of the recipe."""

    def __init__(self, problems: Iterable[PlaitError]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.where is None, p.where or Where("")))
        super().__init__(f"{len(self.problems)} problems")

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)


def raise_all(problems: Iterable[PlaitError]) -> None:
    """Raise nothing, the one problem, or all of them as `Problems`."""
    found = list(problems)
    if found:
        raise found[0] if len(found) == 1 else Problems(found)


def reason(error: OSError) -> str:
    """What the system says, and of which file where it tells."""
    said = error.strerror or str(error)
    return f"{said}: {error.filename}" if error.filename and error.strerror else said


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    folded = {k.replace("-", "_").lower(): k for k in known}
    hits = difflib.get_close_matches(word.replace("-", "_").lower(), folded, n=1, cutoff=0.6)
    return folded[hits[0]] if hits else None
