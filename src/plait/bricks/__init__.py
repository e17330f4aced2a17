"""The registry of bricks: every file of this folder that does not start with an underscore is one."""

from __future__ import annotations

from plait import methods
from plait.brick import Brick
from plait.registry import Registry

_registry = Registry(__name__, __path__, Brick, methods.loaded)


def bricks() -> Registry[Brick]:
    """Name -> brick: plait's own, those of installed packages (entry-point group `plait.bricks`), those of `methods.load`."""
    return _registry
