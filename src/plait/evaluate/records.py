"""What an evaluation is made of: measures of items, tasks that measure, subjects that are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Measure(NamedTuple):
    """One metric of one item.

    A score is the mean of the items' values, weighted; with `mean` "exp" it is e to the power of that mean, as a perplexity.
    """

    value: float
    weight: float = 1.0
    higher_is_better: bool = True
    mean: str = "mean"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one item of a task gave for one model: metric -> measure; `asked`, `wanted` and `said` are for people."""

    key: str
    measures: Mapping[str, Measure]
    asked: str = ""
    wanted: str = ""
    said: str = ""


class Subject(Protocol):
    """A model that is scored."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def path(self) -> Path | None:
        """Its folder; None for a merge that is not written."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when its weights, config or tokenizer change."""

    def loaded(self) -> tuple[Any, Any]:
        """(transformers model in eval mode, tokenizer); kept until `close`."""

    def folder(self) -> Path:
        """A folder with the whole model; a merge that is not written is written to a temporary one, kept until `close`."""

    def close(self) -> None:
        """Free what `loaded` and `folder` took."""


class Task(Protocol):
    """A list of items and how they are measured."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when items, settings or the way of measuring change."""

    @property
    def keys(self) -> Sequence[str]:
        """One key an item, unique, in order."""

    def measure(self, subject: Subject, keys: Sequence[str]) -> Iterator[Sample]:
        """The samples of these items, each as soon as it is known, in any order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How models are run and which items are taken; `limit`: the first items of each task, None for all."""

    limit: int | None = None
    window: int | None = None  # tokens; None: what the model was made for, at most 2048
    stride: int | None = None  # tokens; None: half a window
    max_tokens: int = 64
    chat: bool = False
    batch: int = 32
    task_folders: tuple[Path, ...] = field(default=())
