"""One HTML page of a comparison: no script, nothing from the network, so that it opens anywhere and can be kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.diff.facts import largest_changes
from plait.diff.phrases import fixed, percent
from plait.diff.plots import library, lines
from plait.errors import OutputError, PlaitError
from plait.output.textfile import write_text

LARGEST = 15  # tensors in the table of the largest changes


def check(path: str | Path) -> None:
    """Find out before the work whether the page can be made; raises `PlaitError`, or `OutputError` for its place."""
    try:
        library()
    except ImportError as error:
        raise PlaitError(
            "pygal, which draws the page, is not installed", wanted="pygal", do='pip install "plait[page]"'
        ) from error
    place = Path(path).expanduser().absolute().parent
    if not place.is_dir():
        raise OutputError(f"there is no folder {place}", wanted="a folder for the page", do="make it, or name another")


def write(data: dict[str, Any], path: str | Path) -> None:
    """Write the page of `facts` to a file; raises `OutputError` if that cannot be."""
    write_text(Path(path).expanduser(), page(data))


def page(data: dict[str, Any]) -> str:
    """The page of `facts` as text."""
    return str(environment().get_template("page.html.jinja").render(**seen(data)))


def environment(*rooms: str) -> Any:
    """Jinja with the templates of this room and of others, and the filters that they need."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(name, ".") for name in ("plait.diff", *rooms)])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"percent": percent, "fixed": fixed, "warmth": _warmth, "number": lambda n: f"{n:,}"}
    return made


def seen(data: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of `facts`."""
    names = [model["name"] for model in data["models"]]
    return {
        "data": data,
        "names": names,
        "others": names[1:],
        "maps": list(_maps(data)),
        "charts": list(_charts(data, names)),
        "matrix": _matrix(data, names),
        "largest": list(largest_changes(data, LARGEST)),
    }


def _maps(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Layers x kinds for each module with layers, and what stands outside of them: one map a model, and one of conflicts."""
    titles = [(f"Change of {model['name']}", "change", i) for i, model in enumerate(data["models"][1:])]
    if len(titles) > 1:
        titles.append(("Signs differ", "conflict", -1))
    for title, key, i in titles:

        def value(numbers: dict[str, Any] | None, key: str = key, i: int = i) -> float | None:
            found = numbers[key] if numbers else None
            return found if i < 0 or found is None else found[i]

        rows = [
            (f"{row['module']} {row['layer']}" if len(_modules(data)) > 1 else str(row["layer"]), row["kinds"])
            for row in data["layers"]
        ]
        rows += [("outside" if len(data["outside"]) == 1 else row["module"], row["kinds"]) for row in data["outside"]]
        kinds = [k["kind"] for k in data["kinds"]]
        cells = [(name, [value(found.get(kind)) for kind in kinds]) for name, found in rows]
        # all changes have one scale, so that models can be compared by colour
        scale = [x for r in (*data["layers"], *data["outside"]) for n in r["kinds"].values() for x in n["change"] if x]
        yield {"title": title, "kinds": kinds, "rows": cells, "top": 1.0 if i < 0 else max(scale, default=1.0)}


def _charts(data: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    number = 0
    for module in _modules(data):
        of = f", {module}" if len(_modules(data)) > 1 else ""
        rows = [row for row in data["layers"] if row["module"] == module]
        change = {name: [(row["layer"], row["change"][i]) for row in rows] for i, name in enumerate(names[1:])}
        norm = {name: [(row["layer"], row["norm"][i]) for row in rows] for i, name in enumerate(names[1:])}
        plots = {f"Change by layer{of}": change, f"Norm by layer, of that of {names[0]}{of}": norm}
        if len(names) > 2:
            plots[f"Share of entries in which signs differ, by layer{of}"] = {
                "signs differ": [(row["layer"], row["conflict"]) for row in rows]
            }
        for title, series in plots.items():
            number += 1
            yield {"title": title, "svg": lines(title, series, number, zero=not title.startswith("Norm"))}


def _matrix(data: dict[str, Any], names: list[str]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Every pair of models, both ways round."""
    pairs = {tuple(pair["models"]): pair for pair in data["pairs"]}
    return [(a, [pairs.get((a, b)) or pairs.get((b, a)) for b in names]) for a in names]


def _modules(data: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["module"] for row in data["layers"]))


def _warmth(value: float | None, top: float) -> str:
    """How much of the warm colour a cell has; the root keeps small values apart."""
    return "0%" if value is None or not top else f"{100 * math.sqrt(min(1.0, max(0.0, value / top))):.0f}%"
