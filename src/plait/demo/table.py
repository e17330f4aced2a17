"""What the demo found: a table and a few sentences for people, JSON for programs, all worked out from the scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from plait.demo.score import SKILLS
from plait.demo.story import Row, Story

TITLE = ("model", *(skill.name for skill in SKILLS), "mean", "gain kept", "")


def cells(story: Story) -> Iterator[tuple[str, ...]]:
    """The table's rows as text: base, specialists, then the merges, best first."""
    merges = sorted(story.merges, key=lambda row: -row.mean)
    for row in [*(row for row in story.rows if not row.merge), *merges]:
        kept = story.kept(row)
        note = "<- best merge" if row is story.best else ""
        percents = [_percent(row.scores[skill.name].share) for skill in SKILLS]
        yield row.name, *percents, _percent(row.mean), "-" if kept is None else f"{kept:.0%}", note


def plain(story: Story) -> str:
    """The table with aligned columns, nothing but text."""
    rows = [TITLE, *cells(story)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TITLE))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        )
        for row in rows
    ]
    models = 1 + 1 + len(SKILLS)  # the title, the base, the specialists
    rule = "-" * (sum(widths[:-1]) + 2 * (len(widths) - 2))
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:models], rule, *lines[models:]])


def rich(story: Story) -> Any:
    """The table as a `rich.table.Table`."""
    from rich.table import Table

    table = Table()
    for i, title in enumerate(TITLE):
        last = i == len(TITLE) - 1  # which alone may be broken where the terminal is narrow
        table.add_column(title, justify="left" if i == 0 or last else "right", no_wrap=not last)
    for i, row in enumerate(cells(story)):
        table.add_row(*row, style="bold" if row[-1] else None, end_section=i == len(SKILLS))
    return table


def footnotes(story: Story) -> list[str]:
    """What the columns mean, and how far the numbers can be trusted."""
    worst = max(score.error for row in story.rows for score in row.scores.values())
    total = next(iter(story.best.scores.values())).total
    return [
        *(f"{skill.name}: {skill.about}" for skill in SKILLS),
        f"Right answers in %, of {total} questions a skill, unseen in training; the numbers in the recipes were "
        f"chosen by looking at such scores. One standard error is at most "
        f"±{100 * worst:.1f} for a skill and ±{100 * max(row.error for row in story.rows):.1f} for a mean.",
        "gain kept: of what the specialists gained over the base; 100% is each specialist at its own skill.",
    ]


def learnt(story: Story) -> list[str]:
    """What the scores say, in plain sentences; differences below two standard errors are called too small to tell."""
    base, best = story.row("base"), story.best
    single = max((story.row(skill.name) for skill in SKILLS), key=lambda row: row.mean)
    close = [row.name for row in story.merges if row is not best and _close(row, best)]
    above, names = _above(best, base), [skill.name for skill in SKILLS]
    allround = [name for name in names if len(_above(story.row(name), base)) == len(names)]
    return [
        f"The best merge, {best.name}, is right {_percent(best.mean)}% of the time on average: {_against(best, base)} than "
        f"the base, {_against(best, single)} than {single.name}, the best specialist. Nothing was trained for it.",
        f"It is above the base in {len(above)} of {len(names)} skills ({', '.join(above) or 'none'}). Specialists that are above "
        f"it in all {len(names)}: {', '.join(allround) or 'none'}.",
        f"Merges too close to the best one to tell them apart: {', '.join(close) or 'none'}.",
    ]


def as_json(story: Story) -> dict[str, object]:
    """Everything in the table, with shares in [0, 1] and standard errors."""
    return {
        "models": [
            {
                "name": row.name,
                "about": row.about,
                "merge": row.merge,
                "path": str(row.path),
                "scores": {
                    name: {"right": s.right, "total": s.total, "share": s.share, "error": s.error}
                    for name, s in row.scores.items()
                },
                "mean": row.mean,
                "error": row.error,
                "gain_kept": story.kept(row),
            }
            for row in story.rows
        ],
        "best": story.best.name,
        "learnt": learnt(story),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _above(row: Row, other: Row) -> list[str]:
    return [name for name in row.scores if row.scores[name].share > other.scores[name].share]


def _close(row: Row, other: Row) -> bool:
    return abs(row.mean - other.mean) < 2 * math.hypot(row.error, other.error)


def _against(row: Row, other: Row) -> str:
    """`12.3 points more`, `4.5 points less`, with a remark if chance may explain it."""
    points = 100 * (row.mean - other.mean)
    remark = " (too little to tell)" if _close(row, other) else ""
    return f"{abs(points):.1f} points {'more' if points >= 0 else 'less'}{remark}"
