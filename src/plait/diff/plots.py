"""Lines over the depth of a model, as SVG that takes its colours from the page. Drawn by pygal."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

#: line after line: whole, dashed, dotted, so that colours are not needed to tell them apart
DASHES = ("none", "8,4", "2,4", "12,4,2,4")
COLOURS = 6  # variables --line-1 .. of the page
ROW = 20  # of the legend

Points = Sequence[tuple[float, float | None]]


def library() -> Any:
    """pygal, or ImportError. Its finder of plug-ins, which Python 3.10 and 3.11 warn of at every import after, is taken away."""
    found = importlib.import_module("pygal")
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]
    return found


def lines(title: str, series: Mapping[str, Points], number: int, share: bool = True, zero: bool = True) -> str:
    """One chart: x is the layer, y a share or a number, from zero on or not. `number` tells a page's charts apart."""
    pygal = library()
    known = [y for points in series.values() for _, y in points if y is not None]
    bottom, top = min(known, default=0.0), max(known, default=0.0)
    low = min(0.0, bottom) if zero else bottom - 0.02 * abs(bottom)
    high = (top or None) if zero else top + 0.02 * abs(top)
    last = max(1, *(int(x) for points in series.values() for x, _ in points))
    columns = min(3, max(1, len(series)))
    rows = -(-len(series) // columns)
    short = rows - len(series) // columns  # pygal leaves no room for a last row that is not full
    style = pygal.style.Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--text)",
        foreground_strong="var(--text)",
        foreground_subtle="var(--faint)",
        colors=tuple(f"var(--line-{i % COLOURS + 1})" for i in range(max(1, len(series)))),
        font_family="inherit",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=13,
        opacity=1,
        transition="0s",
    )
    chart = pygal.XY(
        style=style,
        js=[],
        width=460,
        height=260 + ROW * rows,
        explicit_size=False,
        disable_xml_declaration=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=columns,
        truncate_legend=24,
        show_legend=len(series) > 1,
        show_x_guides=False,
        dots_size=2,
        margin=6,
        margin_bottom=6 + ROW * short,
        range=(low, high),
        value_formatter=(lambda y: f"{100 * y:.3g} %") if share else (lambda y: f"{y:.3g}"),
        x_value_formatter=lambda x: f"{x:.0f}",
        xrange=(0, last),
        x_labels=list(range(0, last + 1, -(-last // 8))),
    )
    chart.uuid = f"chart-{number}"
    for i, (name, points) in enumerate(series.items()):
        chart.add(name, list(points), stroke_style={"width": 2, "dasharray": DASHES[i // 2 % len(DASHES)]})
    svg = str(chart.render(is_unicode=True))
    svg = re.sub(r"<!--.*?-->|<script.*?</script>|<script[^>]*/>", "", svg, flags=re.S)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
