"""How facts look in a terminal: sizes, times, JSON, notes, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

BLOCKS = "▁▂▃▄▅▆▇█"


class Listed(click.Group):
    """A group whose help has each command's first sentence whole; click would cut it at the end of the line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(300)) for name, found in rows if found])


def size(nbytes: float) -> str:
    """Bytes for people: 1.27 GB, 640 MB, 12 KB."""
    for unit, scale, digits in (("TB", 1e12, 2), ("GB", 1e9, 2), ("MB", 1e6, 0), ("KB", 1e3, 0)):
        if nbytes >= scale:
            return f"{nbytes / scale:.{digits}f} {unit}"
    return f"{nbytes:.0f} bytes"


def seconds(value: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: object) -> str:
    """A parameter's value for people."""
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def emit_json(data: Any) -> None:
    from pydantic_core import to_json  # Python's own takes ten times as long for a large plan

    click.echo(to_json(data, indent=2, inf_nan_mode="constants").decode())


def notes(lines: Iterable[str], quiet: bool = False) -> None:
    if not quiet:
        for line in lines:
            click.echo(f"note: {line}", err=True)


def columns(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> None:
    """Print rows as aligned columns; the last column is left as it is, but for a terminal that is too narrow for it."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        head = indent + "".join(f"{cell}  " for cell in cells)
        click.echo(fitted((head + row[-1]).rstrip(), len(head)))


def fitted(line: str, hanging: int, stderr: bool = False) -> str:
    """A line broken between words where a terminal is too narrow for it, what follows `hanging` columns in."""
    if not (sys.stderr if stderr else sys.stdout).isatty():
        return line
    import shutil
    import textwrap

    width = max(40, shutil.get_terminal_size().columns)
    if len(line) <= width:
        return line
    hanging = hanging if hanging <= width // 2 else 6
    return textwrap.fill(line, width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> None:
    """Print a table and an empty line; as wide as the terminal, 120 columns elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(head):
        table.add_column(Text(title), justify="left" if i in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with console.capture() as printed:
        console.print(table)
    click.echo("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def spark(values: Sequence[float]) -> str:
    """Heights of values above zero, at most 48 of them."""
    step = max(1, -(-len(values) // 48))
    kept = [max(values[i : i + step]) for i in range(0, len(values), step)]
    top = max(kept, default=0.0)
    return "".join(BLOCKS[min(7, int(8 * value / top))] for value in kept) if top else ""


@contextmanager
def progress(total: int, what: str, quiet: bool = False) -> Iterator[Callable[[int], None] | None]:
    """Yields a function that is told finished bytes: a bar with GB/s and time left on a terminal, plain lines elsewhere."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines(total, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task(what, total=total)

    def tell(done: int) -> None:
        bar.start()  # at the first word, so that nothing stands in the way of what comes before the work
        bar.advance(task, done)

    try:
        yield tell
    finally:
        bar.stop()


def _lines(total: int, what: str, shown: Callable[[float], str] = size) -> Callable[[int], None]:
    """A line at each tenth, for logs; says nothing about work that ends within seconds."""
    import threading
    import time

    begun, lock = time.monotonic(), threading.Lock()
    state = {"done": 0, "told": 0}

    def tell(done: int) -> None:
        with lock:
            state["done"] += done
            tenth, passed = state["done"] * 10 // max(total, 1), time.monotonic() - begun
            if tenth > state["told"] and passed > 5:
                state["told"] = tenth
                left = passed * (total - state["done"]) / max(state["done"], 1)
                rate = shown(state["done"] / passed)
                click.echo(
                    f"{what}: {shown(state['done'])} of {shown(total)}, {rate}/s, {seconds(left)} left", err=True
                )

    return tell


@contextmanager
def counting(total: int, what: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told finished items: a bar with time left on a terminal, a line at each tenth elsewhere."""
    if quiet or not total:
        yield lambda done: None
    elif not sys.stderr.isatty():
        yield _lines(total, what, lambda count: f"{count:.0f}")
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.advance(task, done)


@contextmanager
def modules(quiet: bool = False) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Yields a function that is told how many modules there are, and gives one that is told the finished ones."""
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(counting(total, "modules", quiet))
