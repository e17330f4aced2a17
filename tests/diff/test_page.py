"""The page and the terminal: the same numbers, in a form that opens anywhere."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import make
from plait.cli import cli, main
from plait.diff.phrases import percent
from plait.diff.plots import lines

VOID = {"meta", "br", "path", "rect", "circle", "line"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base with a name that is markup, and two models."""
    folder = tmp_path_factory.mktemp("family")
    base = make.tensors(0, layers=12, hidden=16)
    folders = [make.write(folder / "<b>base & co", base)]
    for seed, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(seed)
        made = {n: x + 0.01 * (1 + seed) * torch.randn(x.shape, generator=generator) for n, x in base.items()}
        folders.append(make.write(folder / name, made))
    return [str(f) for f in folders]


@pytest.fixture(scope="module")
def page(family: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("page") / "page.html"
    done = CliRunner().invoke(cli, ["diff", *family, "--page", str(out), "--json", "--quiet"], catch_exceptions=False)
    return out, json.loads(done.stdout)


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects what a page refers to and its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.cells: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.refers += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def outline(path: Path) -> Outline:
    found = Outline()
    found.feed(path.read_text("utf-8"))
    return found


def test_well_formed(page: tuple[Path, dict]) -> None:
    """The page's tags are closed in order; it has a title, a viewport, both colour schemes, and pictures with names."""
    text, found = page[0].read_text("utf-8"), outline(page[0])
    assert found.open == []
    assert "<title>" in text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count('<svg role="img" aria-label=') == text.count("<svg ") == 3


def test_alone(page: tuple[Path, dict]) -> None:
    """The page has no script and needs nothing from elsewhere."""
    found = outline(page[0])
    assert not found.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert found.refers == []
    assert "url(" not in page[0].read_text("utf-8").replace("url(#", "")


def test_escaped(page: tuple[Path, dict], family: list[str]) -> None:
    """A model's name is text, never markup."""
    text = page[0].read_text("utf-8")
    assert "<b>base" not in text
    assert html.escape("<b>base & co") in text


def test_page_is_json(page: tuple[Path, dict]) -> None:
    """The cells of the page show the numbers of the JSON: every layer and kind of every model, conflicts, pairs, totals."""
    _, data = page
    cells = [cell.strip() for cell in outline(page[0]).cells]
    everything = [*data["layers"], *data["outside"]]
    kinds = [kind["kind"] for kind in data["kinds"]]
    for i in range(2):
        wanted = [
            percent(row["kinds"][k]["change"][i]) if k in row["kinds"] else "–" for row in everything for k in kinds
        ]
        assert contains(cells, wanted)
    conflicts = [
        percent(row["kinds"][k]["conflict"]) if k in row["kinds"] else "–" for row in everything for k in kinds
    ]
    assert contains(cells, conflicts)
    for i in range(2):
        assert percent(data["total"]["change"][i]) in cells
        assert f"{data['total']['cosine'][i]:.4f}" in cells
    text = " ".join(cells)
    for pair in data["pairs"]:
        assert percent(pair["distance"]) in text


def contains(cells: list[str], wanted: list[str]) -> bool:
    return any(cells[i : i + len(wanted)] == wanted for i in range(len(cells)))


@pytest.mark.parametrize("count", range(1, 9))
def test_legend(count: int) -> None:
    """Every line of a chart has its name below it, inside of the picture."""
    svg = lines("title", {f"model {i}": [(0, 0.1), (1, 0.2 + i)] for i in range(count)}, 1)
    height = float(re.search(r'viewBox="0 0 460 (\d+)"', svg)[1])
    drawn = re.search(r'translate\([\d.]+, ([\d.]+)\)" class="legends"', svg)
    marks = [float(drawn[1]) + float(y) + 12 for y in re.findall(r'y="([\d.]+)" width="12"', svg)] if drawn else []
    assert len(marks) == (count if count > 1 else 0)
    assert max(marks, default=0.0) <= height


def test_chart_is_json(page: tuple[Path, dict]) -> None:
    """The chart's points are the layers' changes."""
    text, data = page[0].read_text("utf-8"), page[1]
    svg = text[text.index("<svg ") : text.index("</svg>")]
    values = [float(v) for v in re.findall(r'class="value">\d+: ([\d.]+) %<', svg)]
    wanted = [100 * layer["change"][i] for i in range(2) for layer in data["layers"]]
    assert values == pytest.approx(wanted, rel=5e-3)


def test_same_page(family: list[str], page: tuple[Path, dict], tmp_path: Path) -> None:
    """The same models give the same page, byte for byte."""
    CliRunner().invoke(cli, ["diff", *family, "--page", str(tmp_path / "again.html"), "--quiet"])
    assert (tmp_path / "again.html").read_bytes() == page[0].read_bytes()


def test_terminal(family: list[str], page: tuple[Path, dict]) -> None:
    """The terminal shows each kind's change and each verdict of the JSON; --tensors a line for each tensor."""
    done = CliRunner().invoke(cli, ["diff", *family, "--tensors", "--quiet"], catch_exceptions=False)
    for kind in page[1]["kinds"]:
        line = next(line for line in done.stdout.splitlines() if line.startswith(kind["kind"]))
        assert all(percent(x) in line for x in kind["change"])
    assert all(verdict["says"] in done.stdout for verdict in page[1]["verdicts"])
    assert all(tensor["name"] in done.stdout for tensor in page[1]["tensors"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{0}", "nowhere/at-all/x"], "there is no nowhere/at-all/x"),
        (["{0}", "{other}"], "the models share no tensor"),
        (["{packed}", "{packed}/"], "model.embed_tokens.weight uint8[4, 8]"),
        (["{0}", "{1}", "--page", "nowhere/page.html"], "there is no folder"),
        (["{0}", "{1}", "--page", "/proc/page.html"], "cannot be written"),
    ],
)
def test_refused(
    arguments: list[str], told: str, family: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be compared or written is told in words, and the exit code is 2."""
    other = make.write(tmp_path / "other", {"model.embed_tokens.weight": torch.zeros(7, 3)}, settings={})
    codes = {"model.embed_tokens.weight": torch.zeros(4, 8, dtype=torch.uint8)}
    packed = make.write(tmp_path / "packed", codes, settings={})
    words = [word.format(*family, other=other, packed=packed) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["diff", *words, "--quiet"])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_browser(page: tuple[Path, dict], tmp_path: Path) -> None:
    """In a real browser the page fits its window from the width of a phone on, and every picture is drawn."""
    widths, text = (360, 390, 1200), html.escape(page[0].read_text("utf-8"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "".join(f'<iframe style="border:0;width:{w}px;height:800px" srcdoc="{text}"></iframe>' for w in widths)
        + "<pre></pre><script>onload = () => { document.querySelector('pre').textContent = JSON.stringify("
        "[...document.querySelectorAll('iframe')].map(f => f.contentDocument).map(d => ({"
        "wide: d.documentElement.scrollWidth,"
        "drawn: [...d.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width > 200),"
        "warm: new Set([...d.querySelectorAll('.map td')].map(c => getComputedStyle(c).backgroundColor)).size})))}</script>"
    )
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,900", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    for width, found in zip(widths, json.loads(done.stdout.split("<pre>")[1].split("</pre>")[0]), strict=True):
        assert found["wide"] <= width
        assert found["drawn"] == [True, True, True]
        assert found["warm"] > 5
