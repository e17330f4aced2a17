"""The registry of merge methods: every file of this folder that does not start with an underscore is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from plait.method import Method


@cache
def registry() -> Mapping[str, Method]:
    """Name -> method: plait's own, then those of installed packages (entry-point group `plait.methods`)."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            method = getattr(importlib.import_module(f"{__name__}.{module.name}"), module.name)
            found[method.name] = method
    for point in entry_points(group="plait.methods"):
        method = point.load()
        found.setdefault(method.name, method)
    return MappingProxyType(dict(sorted(found.items())))
