"""What the files of a folder, installed packages and files of the user's define, by name: loaded when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """Name -> part, in the order of the names.

    `package`, with its `path`: every file that does not start with an underscore defines the part of its name. `kind`: what
    `loaded` parts, of the user's files, count; packages bring theirs as entry points of a group that is called like `package`.
    """

    def __init__(self, package: str, path: Iterable[str], kind: type[Part], loaded: Mapping[str, Any]) -> None:
        self._package, self._path, self._kind, self._loaded = package, path, kind, loaded

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(m.name for m in pkgutil.iter_modules(self._path) if not m.name.startswith("_"))

    @cached_property
    def _installed(self) -> dict[str, Part]:
        parts: list[Any] = [point.load() for point in entry_points(group=self._package)]
        return {part.name: part for part in reversed(parts)}

    def taken(self, name: str) -> bool:
        """Whether a part of that name is there without the user's files."""
        return name in self._files or name in self._installed

    def __getitem__(self, name: str) -> Part:
        if name in self._files:
            part: Part = getattr(importlib.import_module(f"{self._package}.{name}"), name)
            return part
        if name in self._installed:
            return self._installed[name]
        if isinstance(part := self._loaded[name], self._kind):
            return part
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        of_the_user = (name for name, part in self._loaded.items() if isinstance(part, self._kind))
        return iter(sorted({*self._files, *self._installed, *of_the_user}))

    def __len__(self) -> int:
        return sum(1 for _ in self)
