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

Points = Sequence[tuple[float, float | None]]


def library() -> Any:
    """pygal, or ImportError. Its finder of plug-ins, which Python 3.10 and 3.11 warn of at every import after, is taken away."""
    found = importlib.import_module("pygal")
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]
    return found


def lines(title: str, series: Mapping[str, Points], number: int) -> str:
    """One chart: x is the layer, y a share. `number` tells the charts of a page apart. Scripts and comments are left out."""
    pygal = library()
    last = max(1, *(int(x) for points in series.values() for x, _ in points))
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
        height=280,
        explicit_size=False,
        disable_xml_declaration=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=min(3, max(1, len(series))),
        truncate_legend=24,
        show_legend=len(series) > 1,
        show_x_guides=False,
        dots_size=2,
        margin=6,
        range=(0, None) if not _top(series) else (0, _top(series)),
        value_formatter=lambda y: f"{100 * y:.3g} %",
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


def _top(series: Mapping[str, Points]) -> float:
    return max((y for points in series.values() for _, y in points if y is not None), default=0.0)
