"""What the runs of `peer.py` say, as the README's table and a plot.

    python benchmarks/table.py RUNS.json [--write PAGE...] [--plot FILE.svg]

Ratios are taken within a round, from runs one after the other, and the median of the rounds is shown. `--write` puts the table
between the marks `<!-- bench -->` and `<!-- /bench -->` of a page.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TITLES = {
    "linear": "linear of 2",
    "linear4": "linear of 4",
    "nuslerp": "nuslerp of 2",
    "model_stock": "model_stock of 3",
    "karcher": "karcher of 2",
    "task_arithmetic": "task_arithmetic of 3",
    "slerp": "slerp with gradients",
    "passthrough": "passthrough, 24 layers of 2",
    "dare_ties": "dare_ties of 3",
    "ties": "ties of 3, density 0.5",
    "breadcrumbs": "breadcrumbs of 3",
    "sce": "sce of 3",
    "della": "della of 2",
}
Run = dict[str, Any]


def pairs(runs: Sequence[Run], merge: str, other: str, where: str = "disk") -> list[tuple[Run, Run]]:
    """(plait's run, the other's) of each round that has both."""
    found = {(r["round"], r["who"]): r for r in runs if r["merge"] == merge and r["where"] == where}
    rounds = sorted({r for r, _ in found})
    return [(found[r, "plait"], found[r, other]) for r in rounds if (r, "plait") in found and (r, other) in found]


def ratio(made: Sequence[tuple[Run, Run]], figure: str) -> float:
    """How many times more the other took, the median of the rounds."""
    return statistics.median(theirs[figure] / ours[figure] for ours, theirs in made)


def median(made: Sequence[tuple[Run, Run]], which: int, figure: str) -> float:
    return statistics.median(pair[which][figure] for pair in made)


def table(found: dict[str, Any]) -> Iterator[str]:
    runs = found["runs"]
    titles = "merge", "seconds: plait, mergekit", "times faster", "CPU, times less", "peak MB: plait, mergekit"
    yield f"| {' | '.join(titles)} | against the floor | pairs |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for merge, title in TITLES.items():
        peer, floor = pairs(runs, merge, "peer"), pairs(runs, merge, "floor")
        if not peer:
            continue
        small = f", inputs of {nbytes / 1e9:.2f} GB" if (nbytes := peer[0][0]["input_bytes"]) != _usual(found) else ""
        yield (
            f"| {title}{small} | {median(peer, 0, 'wall'):.1f}, {median(peer, 1, 'wall'):.1f} | **{ratio(peer, 'wall'):.1f}** "
            f"| {ratio(peer, 'cpu'):.1f} | {median(peer, 0, 'peak'):.0f}, {median(peer, 1, 'peak'):.0f} "
            f"| {1 / ratio(floor, 'wall'):.2f} | {len(peer)} |"
        )


def floors(found: dict[str, Any]) -> Iterator[str]:
    """Plait's wall time in times of the floor's, wherever the files lay."""
    runs = found["runs"]
    places = {
        "disk": "files on disk, inputs cached",
        "memory": "output in memory, inputs cached",
        "cold": "inputs not cached",
        "slow": f"inputs not cached, a disk of {found.get('slow')} MB/s",
    }
    there = [place for place in places if any(r["where"] == place and r["who"] == "floor" for r in runs)]
    yield f"| wall, times the floor | {' | '.join(places[place] for place in there)} |"
    yield f"|---|{'---:|' * len(there)}"
    for merge, title in TITLES.items():
        cells = []
        for place in there:
            made = pairs(runs, merge, "floor", place)
            cells.append(f"{1 / ratio(made, 'wall'):.2f} ({len(made)})" if made else "")
        if any(cells[1:]):
            yield f"| {title} | {' | '.join(cells)} |"


def _usual(found: dict[str, Any]) -> int:
    """The size that most inputs have."""
    return statistics.mode(run["input_bytes"] for run in found["runs"])


def caption(found: dict[str, Any]) -> str:
    return (
        f"{found['machine']}; {found.get('peer', 'no peer')}; inputs of {_usual(found) / 1e9:.2f} GB each in bfloat16, "
        "in the page cache. Whole processes in turn, start-up included, in a virtual machine that did nothing else; medians of "
        "the pairs. plait ends when the output is on the disk (`fsync`), as the floor does; mergekit does not wait for that."
    )


def plot(found: dict[str, Any], file: Path) -> None:
    """Bars: how many times faster, and how many times less CPU, than the peer."""
    import pygal
    from pygal.style import Style

    style = Style(
        background="white",
        plot_background="white",
        colors=("#0b6e99", "#c9a227"),
        font_family="sans-serif",
        label_font_size=12,
    )
    chart = pygal.HorizontalBar(
        style=style,
        width=820,
        height=640,
        print_values=True,
        value_formatter=lambda x: f"{x:.0f}",
        title="mergekit-yaml's time, in times of plait's",
        legend_at_bottom=True,
        show_y_guides=False,
        js=(),
        no_prefix=True,
        disable_xml_declaration=True,
        spacing=14,
    )
    merges = [merge for merge in TITLES if pairs(found["runs"], merge, "peer")][::-1]
    chart.x_labels = [TITLES[merge] for merge in merges]
    for title, figure in (("CPU seconds", "cpu"), ("wall seconds", "wall")):
        chart.add(title, [ratio(pairs(found["runs"], merge, "peer"), figure) for merge in merges])
    file.write_text(chart.render(is_unicode=True), "utf-8")


def between(text: str, mark: str, new: str) -> str:
    """The text with something else between two marks."""
    pattern = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)"
    return re.sub(pattern, lambda _: f"{new}\n", text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="pages with the marks")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw")
    options = parser.parse_args()
    found = json.loads(options.runs.read_text())
    lines = "\n".join(table(found))
    print(caption(found), "", lines, "", *floors(found), sep="\n")
    for page in options.write:
        text = page.read_text("utf-8")
        text = between(text, "bench", f"{lines}\n\n{caption(found)}")
        page.write_text(between(text, "floors", "\n".join(floors(found))), "utf-8")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
