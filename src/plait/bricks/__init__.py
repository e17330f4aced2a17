"""The registry of bricks: every file of this folder that does not start with an underscore is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from plait.brick import Brick


@cache
def bricks() -> Mapping[str, Brick]:
    """Name -> brick: plait's own, and those of installed packages (entry-point group `plait.bricks`)."""
    found: dict[str, Brick] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            brick = getattr(importlib.import_module(f"{__name__}.{module.name}"), module.name)
            found[brick.name] = brick
    for point in entry_points(group="plait.bricks"):
        brick = point.load()
        found.setdefault(brick.name, brick)
    return MappingProxyType(dict(sorted(found.items())))
