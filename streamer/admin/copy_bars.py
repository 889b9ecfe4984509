"""How far initial copies are, as progress bars on a terminal: a line for each edge, and below it one for each table in work.

They look at the daemon's reports now and then. Lines of the log are written above them, so a table that is whole needs no bar: the
log has told it. The trap: there may be more lines than the terminal has; then those of tables are left out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from streamer import logs
from streamer.copy_report import CopyReport, CopyTotals
from streamer.model import EdgeName
from streamer.report import EdgeReport, StreamReport

LOOK_SECONDS: Final = 0.3
BAR: Final = 8
"""Characters of a bar."""
AROUND: Final = 2
"""Lines of the terminal that are the heading's and the cursor's."""

Report = Callable[[], Sequence[StreamReport]]


@contextmanager
def shown(report: Report) -> Iterator[None]:
    """Show running copies on standard error while the context lasts, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(report, ended), name="copy bars", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(report: Report, ended: threading.Event) -> None:
    console = Console(stderr=True)
    while not ended.wait(LOOK_SECONDS):
        seen: set[EdgeName] = set()
        if not _copying(report()):
            continue
        with _live(console) as show:
            while True:
                streams = report()
                running = _copying(streams)
                seen |= running
                show([edge for stream in streams for edge in stream.edges if _name(edge) in seen])
                if not running or ended.wait(LOOK_SECONDS):
                    break


@contextmanager
def _live(console: Console) -> Iterator[Callable[[Sequence[EdgeReport]], None]]:
    """Give what draws the bars in place of those before. Whoever logs waits meanwhile, else a line may tear them apart."""
    live = Live(console=console, auto_refresh=False)

    def show(edges: Sequence[EdgeReport]) -> None:
        with logs.terminal:
            live.update(drawn(edges, console.height - AROUND), refresh=True)

    with logs.terminal:
        live.start()
    try:
        yield show
    finally:
        with logs.terminal:
            live.stop()


def _copying(streams: Sequence[StreamReport]) -> set[EdgeName]:
    """The edges that copy now."""
    return {_name(edge) for stream in streams for edge in stream.edges if edge.copy_totals.rate is not None}


def _name(edge: EdgeReport) -> EdgeName:
    return EdgeName(edge.sync, edge.source, edge.target)


def drawn(edges: Sequence[EdgeReport], lines: int) -> Table:
    """The bars of these edges, and of the tables that each has in work, in so many lines."""
    numbers = ("rows", "bytes", "ranges", "rows/s", "left")
    table = Table(
        Column("copied"),
        Column("", width=BAR, no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in ("", *numbers)),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    of_tables = [copy for edge in edges for copy in edge.copy if not copy.done]
    with_tables = len(edges) + len(of_tables) <= lines
    fitting = edges if len(edges) <= lines else edges[: lines - 1]
    for edge in fitting:
        totals = edge.copy_totals
        name = f"{_name(edge)}, {totals.tables:,}/{totals.total_tables:,}"
        table.add_row(_cut(name, "bold"), *_figures(totals, totals.total_rows))
        for copy in edge.copy:
            if with_tables and not copy.done:
                table.add_row(_cut(f"  {copy.table}"), *_figures(copy, max(copy.total, copy.rows)))
    if len(fitting) < len(edges):
        table.add_row(f"and {len(edges) - len(fitting)} more edges")
    return table


def _cut(name: str, style: str = "") -> Text:
    """A name that gives way where the line is too short."""
    return Text(name, style, no_wrap=True, overflow="ellipsis")


def _figures(copy: CopyReport | CopyTotals, total: int) -> Iterator[ProgressBar | str]:
    """The bar, and what stands behind it."""
    yield ProgressBar(total=total or None, completed=copy.rows, width=BAR)
    yield f"{copy.rows / total:.0%}" if total else ""
    yield _of(copy.rows, total)
    yield _of(copy.bytes, copy.total_bytes)
    yield _of(copy.ranges, copy.total_ranges) if copy.total_ranges else ""
    yield "" if copy.rate is None else _short(copy.rate)
    yield "" if copy.remaining is None else str(timedelta(seconds=round(copy.remaining)))


def _of(part: int, whole: int) -> str:
    return f"{_short(part)}/{_short(whole)}"


def _short(number: float) -> str:
    """A number in three digits, as in 4.21M."""
    units = iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while number >= 999.5 and unit != "T":
        number, unit = number / 1000, next(units)
    return f"{number:.3g}{unit}"
