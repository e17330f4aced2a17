"""What an adapter holds of a change, module by module: in its card, and as data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import Any

SHOWN = 20


@dataclass(frozen=True)
class Row:
    """A module: its weight's shape (None: it is held whole), its rank, Frobenius norms of what is left and of the change."""

    module: str
    shape: tuple[int, ...] | None
    rank: int | None
    left: float
    change: float
    bias: bool = False  # its bias changed, too
    across: bool = False  # its weight is stored as [in, out]

    @property
    def error(self) -> float:
        """What is left, as a share of the change."""
        return self.left / self.change if self.change else 0.0


def total(rows: Sequence[Row]) -> float:
    """What is left of all factored modules together, as a share of their change."""
    change = sum(row.change**2 for row in rows)
    return sqrt(sum(row.left**2 for row in rows) / change) if change else 0.0


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"module": row.module, "rank": row.rank, "error": row.error, "change": row.change}
        if row.rank is not None
        else {"module": row.module, "whole": True}
        for row in rows
    ]


def texts(
    out: Path, told: Sequence[str], base: str, rows: Sequence[Row], left_out: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, str]:
    """The card, and the provenance."""
    provenance = {
        "plait": version("plait"),
        **facts,
        "error": total(rows),
        "modules": as_data(rows),
        "left_out": list(left_out),
    }
    factored = [row for row in rows if row.rank is not None]
    worst = sorted(factored, key=lambda row: -row.error)[:SHOWN]
    lines = [
        "---",
        "library_name: peft",
        "tags: [lora, plait]",
        *([f"base_model: {base}"] if base.count("/") == 1 and not Path(base).exists() else []),
        "---",
        "",
        f"# {out.resolve().name}",
        "",
        *told,
        "",
        f"{len(factored)} modules have factors, {len(rows) - len(factored)} are held whole. "
        f"Of the change of all factored modules together, {total(rows):.3g} is left out (relative Frobenius norm).",
        "",
    ]
    if worst:
        lines += [f"The {len(worst)} modules with the most left out:" if len(worst) < len(factored) else "", ""]
        lines += ["| module | rank | left out |", "|---|---|---|"]
        lines += [f"| `{row.module}` | {row.rank} | {row.error:.3g} |" for row in worst]
    if left_out:
        lines += ["", "Changed, but not of a kind that an adapter holds: " + ", ".join(f"`{n}`" for n in left_out)]
    return {
        "README.md": "\n".join(lines) + "\n",
        "plait_provenance.json": json.dumps(provenance, indent=2, ensure_ascii=False) + "\n",
    }


def options(limit: Any) -> dict[str, Any]:
    """A limit as data."""
    return {name: value for name, value in asdict(limit).items() if value is not None}
