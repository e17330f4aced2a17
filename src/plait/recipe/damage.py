"""What to do about a text that is not YAML: the kinds of damage that copying recipes from web pages does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from plait.errors import RecipeError, Where

_ENTRY = re.compile(r"(\s*)- +(?:model|source_model|sources)\s*:")
_ENTRY_KEY = re.compile(r"(\s*)(?:parameters|layer_range|weight|density|epsilon|positive_prompts|negative_prompts)\s*:")
_KEY = re.compile(r"\s*(?:- +)*[\w.\"'-]+\s*:(?:\s|$)")
_KEY_WITH_VALUE = re.compile(r"(\s*)[\w-]+\s*:\s+[^\s#].*")


def damage(error: yaml.YAMLError, text: str, path: str) -> RecipeError:
    """The parser's complaint about `text`, with the line that most likely causes it and what to do there."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    lines = text.splitlines() or [""]
    at = min(mark.line, len(lines) - 1) if mark else 0
    line, do = next(_mends(lines, at), (at, "check the indentation, quotes and colons on this line and the one above"))
    problem = str(getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be parsed")
    column = mark.column + 1 if mark and line == mark.line else 0
    return RecipeError(
        "the recipe cannot be read as YAML",
        found=f"{short(lines[line].strip())} ({problem})",
        do=do,
        where=Where(path, line + 1, column),
    )


def short(text: str) -> str:
    """`text` quoted, cut to a length that fits a message."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _mends(lines: list[str], at: int) -> Iterator[tuple[int, str]]:
    """(line, what to do) for each mend that may apply to an error at line `at`, likeliest first; lines count from 0."""
    bad = lines[at]
    for i, line in enumerate(lines):
        if i <= at and line.lstrip().startswith(("```", "~~~")):
            yield i, "delete the line: it is the fence of a Markdown code block"
        if i <= at and line.strip() in ("...", "…"):
            yield i, "replace the dots by the real entries: they stand for something left out"
        if i <= at and re.fullmatch(r"\s+---\s*", line):
            yield i, "unindent the whole text: '---' separates recipes only at the start of a line"
    if "\t" in bad[: _indent(bad)]:
        yield at, "indent with spaces: YAML does not allow tabs"
    for i in _lost_indents(lines):
        yield (
            i,
            "indent what belongs to each '-' by two columns more: the indentation was lost when the text was copied",
        )
    if _ENTRY_KEY.match(bad) and _indent(bad) <= max((_indent(x) for x in lines[:at] if _ENTRY.match(x)), default=-1):
        yield at, "indent the line to two columns right of the '-' that it belongs to"
    for i in range(max(at - 1, 0), min(at + 1, len(lines) - 1)):
        if (
            _KEY_WITH_VALUE.fullmatch(lines[i])
            and _ENTRY.match(lines[i + 1])
            and _indent(lines[i]) < _indent(lines[i + 1])
        ):
            yield i + 1, "write 'models:' (or the key that the list belongs to) on a line of its own before this one"
    if bad.strip() and not _KEY.match(bad) and not re.match(r"\s*(- +(?!\*\*)|[{\[#\]},])", bad):
        yield at, "delete the text that is not part of the recipe, or put '#' before it"
    if bad.count('"') % 2 or bad.count("'") % 2:
        yield at, "add the missing quote, or quote the whole text"
    if bad.strip()[:1] in tuple("`@%") or re.search(r":\s+[`@%]", bad):
        yield at, "quote the value: it begins with a character that YAML keeps for itself"
    first = next((i for i, line in enumerate(lines) if _KEY.match(line)), at)
    if (
        first < at
        and _KEY.match(bad)
        and (_indent(bad) < _indent(lines[first]) or _indent(bad) == _indent(lines[first]) + 1)
    ):
        yield at, f"begin the line in the same column as line {first + 1}: the keys of one level stand below each other"


def _lost_indents(lines: list[str]) -> Iterator[int]:
    for i in range(len(lines) - 1):
        if (
            _ENTRY.match(lines[i])
            and _ENTRY_KEY.match(lines[i + 1])
            and _indent(lines[i]) == _indent(lines[i + 1]) == 0
        ):
            yield i + 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
