"""Ways to make rows of tokens that a model does not have. A way is a file with a function of its name; the folder is the list.

Each takes a `Space` and gives float32 rows [wanted, hidden].
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from plait.errors import PlanError, nearest
from plait.lazy import Tensor
from plait.ops.random import normal
from plait.tokens.space import Space


def names() -> list[str]:
    """Every way, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def needs_donor(method: str) -> bool:
    """Whether a way looks at a donor's matrix."""
    return bool(getattr(importlib.import_module(f"{__name__}.{method}"), "DONOR", False))


def approximate(space: Space) -> Tensor:
    """The wanted rows, float32 [wanted, hidden], with noise and scale: scale * (row + noise * n)."""
    made = _way(space.options.method)(space)
    if space.options.noise:
        n = normal(space.options.seed, f"{space.tensor}\0noise", 0, 0, made.numel()).reshape(made.shape)
        made = made + space.options.noise * n
    return made * space.options.scale


def check(method: str) -> None:
    """Raise `PlanError` for a way that there is not."""
    if method not in names():
        near = nearest(method, names())
        do = f"did you mean {near}?" if near else "use one of them"
        raise PlanError(f"there is no way {method!r} to make rows", wanted=", ".join(names()), found=method, do=do)


def _way(method: str) -> Callable[[Space], Tensor]:
    check(method)
    found: Callable[[Space], Tensor] = getattr(importlib.import_module(f"{__name__}.{method}"), method)
    return found
