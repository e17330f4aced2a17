"""The page of a merge: what was found, the recipe's values by layer, what arrived of each parent, and a `plait diff`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.diff import page as comparison
from plait.diff.plots import lines
from plait.output.card import number, span
from plait.output.textfile import write_text


def write(data: dict[str, Any], path: str | Path) -> None:
    """Write the page of `build.as_json` to a file; raises `OutputError` if that cannot be."""
    write_text(Path(path).expanduser(), page(data))


def page(data: dict[str, Any]) -> str:
    """The page of `build.as_json` as text."""
    environment = comparison.environment("plait.report")
    environment.filters |= {"span": span, "plain": number}
    seen = comparison.seen(data["comparison"])
    return str(
        environment.get_template("report.html.jinja").render(
            **seen, report=data, values=list(_values(data)), arrived=list(_arrived(data))
        )
    )


def _values(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A chart for each parameter that is not the same in all layers."""
    rows = [row for row in data["values"] if "layers" in row]
    for i, parameter in enumerate(dict.fromkeys(row["parameter"] for row in rows)):
        mine = [row for row in rows if row["parameter"] == parameter]
        series = {_label(row, mine): _points(row["layers"]) for row in mine}
        whose = f" for {next(iter(series))}" if len(series) == 1 and mine[0]["model"] else ""
        title = f"{parameter}{whose}, as the recipe gives it to each layer"
        yield {"title": title, "svg": lines(title, series, 100 + i, share=False)}


def _label(row: dict[str, Any], among: list[dict[str, Any]]) -> str:
    model = (row["model"] or "").rstrip("/").rsplit("/", 1)[-1]
    several = len({other["tensors"] for other in among}) > 1
    tensors = row["tensors"].replace(".weight", "") if several else ""
    return ", ".join(filter(None, [model, tensors])) or row["parameter"]


def _points(values: list[Any]) -> list[tuple[float, float | None]]:
    return [(i, float(x) if isinstance(x, int | float) else None) for i, x in enumerate(values)]


def _arrived(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """By layer: how much of each parent's change is in the merge, and the merge's norm against each parent's."""
    first = data["parents"][0]["name"]
    charts = (("carried", f"How many times the merge has each parent's change from {first}"),)
    at = 200
    for module in dict.fromkeys(layer["module"] for layer in data["parents"][0]["layers"]):
        of = f", {module}" if len({layer["module"] for layer in data["parents"][0]["layers"]}) > 1 else ""
        for key, title in charts:
            series = {
                parent["name"]: [
                    (layer["layer"], layer[key]) for layer in parent["layers"] if layer["module"] == module
                ]
                for parent in data["parents"]
                if any(layer[key] is not None for layer in parent["layers"])
            }
            at += 1
            if series:
                yield {"title": f"{title}, by layer{of}", "svg": lines(f"{title}{of}", series, at, share=False)}
