"""The kinds of task: every file of this folder is one, and an option of `plait eval`.

A kind has OPTION (the option's name), METAVAR and HELP, and `tasks(value, settings)`, which reads and checks what the
option names and raises a `PlaitError` before any model is run. It loads no heavy package before that.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def kinds() -> tuple[ModuleType, ...]:
    """Every kind of task, by name."""
    return tuple(importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
