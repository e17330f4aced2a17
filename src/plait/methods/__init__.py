"""The registry of merge methods: every file of this folder that does not start with an underscore is one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from plait.brick import Brick
from plait.errors import PlanError
from plait.method import Method
from plait.registry import Registry

#: what `load` found, by name
loaded: dict[str, Method | Brick] = {}


_registry = Registry(__name__, __path__, Method, loaded)


def registry() -> Registry[Method]:
    """Name -> method: plait's own, those of installed packages (entry-point group `plait.methods`), those of `load`."""
    return _registry


def load(path: str | os.PathLike[str]) -> list[Method | Brick]:
    """Run a Python file of the user's and register the methods and bricks that it defines, for this process.

    Raises `PlanError` when it cannot be run, defines none, or takes the name of a method that is there already.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PlanError(f"there are no methods in {path}", wanted="a Python file", found="none", do="check the path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is what the user must see
        what = f"{path} cannot be run"
        raise PlanError(what, found=f"{type(error).__name__}: {error}", do="mend the file") from error
    found = [m for m in vars(module).values() if isinstance(m, Method | Brick) and m.function.__module__ == path.stem]
    if not found:
        raise PlanError(
            f"{path} defines no method",
            wanted="a function decorated with @method(…) or @brick(…)",
            found="none",
            do="decorate yours; docs/extend.md shows one",
        )
    for method in found:
        if _registry.taken(method.name):
            what, found_there = f"there is a method {method.name!r} already", f"another in {path}"
            raise PlanError(what, wanted="a name that is free", found=found_there, do="rename yours")
        loaded[method.name] = method
    return found
