"""An evaluation for people, as plain text or Markdown, and for programs, as JSON types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from plait.evaluate.compare import Difference, Evaluation, Score

_MARK = {"better": "better", "worse": "worse", "even": "even", None: ""}


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Models with their scores, and the differences with the keys of the items that went better and worse."""
    return {
        "models": [
            {
                "name": subject.name,
                "path": str(subject.path.resolve()) if subject.path else None,
                "fingerprint": subject.fingerprint,
                "scores": [asdict(score) for score in evaluation.scores[subject.name]],
            }
            for subject in evaluation.subjects
        ],
        "differences": [asdict(difference) for difference in evaluation.differences],
    }


def _title(score: Score) -> str:
    return f"{score.metric} {'↑' if score.higher_is_better else '↓'}"


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _value(score: Score | None, bounds: bool = True) -> str:
    if score is None:
        return "-"
    if not bounds or score.low is None or score.high is None:
        return number(score.value)
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"


def _columns(evaluation: Evaluation) -> list[Score]:
    """One score of each task and metric, in order, to name the columns by."""
    found: dict[tuple[str, str], Score] = {}
    for scores in evaluation.scores.values():
        for score in scores:
            found.setdefault((score.task, score.metric), score)
    return sorted(found.values(), key=lambda score: evaluation.tasks.index(score.task))


def _at(scores: Sequence[Score], column: Score) -> Score | None:
    return next((s for s in scores if (s.task, s.metric) == (column.task, column.metric)), None)


def plain(evaluation: Evaluation, items: int = 0) -> str:
    """A table of all scores; then, for each task, the differences; with `items`, that many of the items that changed."""
    columns = _columns(evaluation)
    head = [["", *(c.task for c in columns)], ["", *(_title(c) for c in columns)]]
    rows = [[s.name, *(_value(_at(evaluation.scores[s.name], c), False) for c in columns)] for s in evaluation.subjects]
    lines = _aligned([*head, *rows], rule=2)
    for column in columns:
        counted = max(s.items for scores in evaluation.scores.values() if (s := _at(scores, column)))
        lines += ["", f"{column.task}: {column.metric}, {_items(counted)}, {_direction(column)}"]
        lines += _aligned(list(_block(evaluation, column)), indent="  ")
        lines += _changed(evaluation, column, items) if items else []
    if any(d.low is not None for d in evaluation.differences):
        lines += ["", "[…]: 95 % intervals, bootstrap over the items; differences on the same items, pair by pair."]
    return "\n".join(line.rstrip() for line in lines)


def _items(count: int) -> str:
    return f"{count} item{'s' * (count != 1)}"


def _direction(column: Score) -> str:
    return "higher is better" if column.higher_is_better else "lower is better"


def _block(evaluation: Evaluation, column: Score) -> Iterator[list[str]]:
    """A row for each model and parent."""
    for subject in evaluation.subjects:
        mine = [
            d
            for d in evaluation.differences
            if (d.model, d.task, d.metric) == (subject.name, column.task, column.metric)
        ]
        value = _value(_at(evaluation.scores[subject.name], column))
        if not mine:
            yield [subject.name, value, "", "", "", ""]
        for i, d in enumerate(mine):
            yield [subject.name if i == 0 else "", value if i == 0 else "", *_told(d)]


def _told(d: Difference) -> list[str]:
    bounds = f" [{_signed(d.low)}, {_signed(d.high)}]" if d.low is not None and d.high is not None else ""
    moved = f"{len(d.won)} up, {len(d.lost)} down" if d.won or d.lost else "no item changed"
    return [f"{_signed(d.difference)}{bounds}", f"than {d.parent}", _MARK[d.verdict], moved]


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value))


def _changed(evaluation: Evaluation, column: Score, most: int) -> Iterator[str]:
    for d in evaluation.differences:
        if (d.task, d.metric) != (column.task, column.metric):
            continue
        for word, keys in (("up", d.won), ("down", d.lost)):
            for key in keys[:most]:
                now, before = evaluation.samples[d.model, d.task][key], evaluation.samples[d.parent, d.task][key]
                yield f"    {word:<5}{_short(now.asked)}"
                if now.wanted or now.said:
                    wanted, said, other = (_short(text) for text in (now.wanted, now.said, before.said))
                    yield f"         wanted {wanted}; {d.model}: {said}; {d.parent}: {other}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 70 else line[:67] + "…")


def markdown(evaluation: Evaluation) -> str:
    """One table: a row a model, a column a metric, with intervals, and the difference to each parent."""
    columns = _columns(evaluation)
    lines = [
        "| model | " + " | ".join(f"{_escaped(c.task)} {_escaped(_title(c))}" for c in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for subject in evaluation.subjects:
        cells = []
        for c in columns:
            parts = [_value(_at(evaluation.scores[subject.name], c))]
            for d in evaluation.differences:
                if (d.model, d.task, d.metric) == (subject.name, c.task, c.metric):
                    told = _told(d)
                    parts.append(f"{told[0]} {_escaped(told[1])}" + (f", {told[2]}" if told[2] else ""))
            cells.append("<br>".join(parts))
        lines.append(f"| {_escaped(subject.name)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "[…]: 95 % intervals, paired bootstrap over the items; ↑ higher, ↓ lower is better."])


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("_", r"\_").replace("<", "&lt;")


def _aligned(rows: list[list[str]], indent: str = "", rule: int = 0) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = [
        indent
        + "  ".join(
            c.ljust(w) if i == 0 or indent else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*text[:rule], "-" * len(text[0]), *text[rule:]] if rule else text
