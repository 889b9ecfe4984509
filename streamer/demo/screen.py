"""What the demo shows: the edges as a table, drawn anew a few times a second (lines without a terminal), and the verdict."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamer.demo.compare import Verdict
from streamer.report import EdgeReport, StreamReport

LINE_SECONDS: Final = 1.0
RATE_SECONDS: Final = 1.0
"""How far back the rows that make a rate are looked at."""


class Screen:
    """Shows what `report` tells, whenever `show` is called. Use it as a context."""

    def __init__(self, console: Console, report: Callable[[], Sequence[StreamReport]]) -> None:
        self._console = console
        self._report = report
        self._rates: dict[str, Rate] = {}
        self._started = time.monotonic()
        self._next_line = 0.0
        self._live = Live(console=console, auto_refresh=False, redirect_stderr=False) if console.is_terminal else None
        self._context: AbstractContextManager[object] = self._live or nullcontext()

    def __enter__(self) -> Screen:
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def show(self, doing: str) -> None:
        """Show how the edges stand now, and what the demo is doing."""
        now = time.monotonic()
        edges = [(edge, self._rate(edge, now)) for stream in self._report() for edge in stream.edges]
        if self._live:
            self._live.update(_drawn(edges, f"{now - self._started:.0f} s: {doing}"), refresh=True)
        elif now - self._started >= self._next_line:
            self._next_line += LINE_SECONDS
            told = "; ".join(_told(edge, rate) for edge, rate in edges)
            self._console.print(f"{now - self._started:3.0f} s  {told}", soft_wrap=True)

    def _rate(self, edge: EdgeReport, now: float) -> float:
        return self._rates.setdefault(edge.target, Rate()).at(now, edge.counters.rows)


class Rate:
    """How fast a counter grew lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, count: int) -> float:
        """Note the count at a moment (in seconds), and return its growth by the second over the last moments."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_SECONDS:
            self._seen.popleft()
        (then, before) = self._seen[0]
        return (count - before) / (now - then) if now > then else 0.0


def _milliseconds(edge: EdgeReport) -> str:
    return f"{1000 * max(edge.lag_seconds, edge.delay_seconds):,.0f}"


def _drawn(edges: Sequence[tuple[EdgeReport, float]], caption: str) -> Table:
    table = Table(caption=caption, caption_justify="left")
    table.add_column("edge", no_wrap=True)
    table.add_column("state", min_width=9, no_wrap=True)
    for heading, width in (("copied", 7), ("rows", 7), ("rows/s", 6), ("lag ms", 6), ("lag bytes", 9)):
        table.add_column(heading, justify="right", min_width=width, no_wrap=True)
    for edge, rate in edges:
        counters = edge.counters
        copied = sum(copy.rows for copy in edge.copy)
        numbers = (f"{copied:,}", f"{counters.rows:,}", f"{rate:,.0f}", _milliseconds(edge), f"{edge.lag_bytes:,}")
        table.add_row(f"{edge.source} -> {edge.target}", edge.state.value, *numbers)
    return table


def _told(edge: EdgeReport, rate: float) -> str:
    if edge.counters.rows == 0:
        return f"{edge.target}: {edge.state}, {sum(copy.rows for copy in edge.copy):,} rows copied"
    return (
        f"{edge.target}: {edge.state}, {edge.counters.rows:,} rows, {rate:,.0f}/s, "
        f"lag {_milliseconds(edge)} ms, {edge.lag_bytes:,} bytes"
    )


def verdict_table(verdicts: Sequence[Verdict], nodes: Sequence[str]) -> Table:
    """Return the verdicts as a table; `nodes` are the headings for what each node holds."""
    table = Table(title="rows on each node", title_justify="left")
    table.add_column("table", no_wrap=True)
    for node in nodes:
        table.add_column(node, justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        rows = [f"{contents.rows:,}" for contents in verdict.contents]
        sums = verdict.contents[0].checksum if verdict.equal else "differ"
        table.add_row(verdict.table, *rows, sums, "equal" if verdict.equal else "[red]NOT EQUAL")
    return table
