"""Numbers for people, – for a number that is not defined."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """A share: 0 %, < 0.001 %, 0.012 %, 0.40 %, 3.4 %, 51 %, 120 %."""
    if value is None:
        return "–"
    x = 100 * value
    if 0 < x < 0.001:
        return "< 0.001 %"
    digits = 0 if x >= 10 or x == 0 else 1 if x >= 1 else 2 if x >= 0.1 else 3
    return f"{x:.{digits}f} %"


def fixed(value: float | None, digits: int) -> str:
    """So many digits after the point, and no -0.00."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def count(n: int, noun: str) -> str:
    """1 tensor, 3 tensors."""
    return f"{n} {noun}{'s' * (n != 1)}"
