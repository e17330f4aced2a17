"""The registry of bricks: every file of this folder that does not start with an underscore is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from plait import methods
from plait.brick import Brick


def bricks() -> Mapping[str, Brick]:
    """Name -> brick: plait's own, those of installed packages (entry-point group `plait.bricks`), those of `methods.load`."""
    own = {name: part for name, part in methods.loaded.items() if isinstance(part, Brick)}
    return MappingProxyType(dict(sorted({**own, **_installed()}.items()))) if own else _installed()


@cache
def _installed() -> Mapping[str, Brick]:
    found: dict[str, Brick] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            brick = getattr(importlib.import_module(f"{__name__}.{module.name}"), module.name)
            found[brick.name] = brick
    for point in entry_points(group="plait.bricks"):
        brick = point.load()
        found.setdefault(brick.name, brick)
    return MappingProxyType(dict(sorted(found.items())))
