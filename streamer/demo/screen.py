"""What the demo shows: the edges as a table, drawn anew a few times a second (lines without a terminal), and the verdicts."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamer.demo.compare import Verdict
from streamer.demo.conflicts import Recorded
from streamer.report import EdgeReport, State, StreamReport

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
            self._console.print(f"{now - self._started:3.0f} s  {_told(edges)}", soft_wrap=True)

    def _rate(self, edge: EdgeReport, now: float) -> float:
        return self._rates.setdefault(_name(edge), Rate()).at(now, edge.counters.rows)


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


def _name(edge: EdgeReport) -> str:
    return f"{edge.source} -> {edge.target}"


def _milliseconds(edge: EdgeReport) -> float:
    return 1000 * max(edge.lag_seconds, edge.delay_seconds)


def _drawn(edges: Sequence[tuple[EdgeReport, float]], caption: str) -> Table:
    table = Table(caption=caption, caption_justify="left")
    table.add_column("edge", no_wrap=True)
    table.add_column("state", min_width=9, no_wrap=True)
    for heading, width in (("copied", 7), ("rows", 7), ("rows/s", 6), ("lag ms", 6), ("conflicts", 9)):
        table.add_column(heading, justify="right", min_width=width, no_wrap=True)
    for edge, rate in edges:
        counters = edge.counters
        copied = sum(copy.rows for copy in edge.copy)
        counts = (copied, counters.rows, rate, _milliseconds(edge), counters.conflicts.total())
        table.add_row(_name(edge), edge.state.value, *(f"{count:,.0f}" for count in counts))
    return table


def _told(edges: Sequence[tuple[EdgeReport, float]]) -> str:
    """What the targets have got, each from all of its sources, and the conflicts."""
    by_target: defaultdict[str, list[tuple[EdgeReport, float]]] = defaultdict(list)
    for edge, rate in edges:
        by_target[edge.target].append((edge, rate))
    lag = max(_milliseconds(edge) for edge, _ in edges)
    conflicts = sum(edge.counters.conflicts.total() for edge, _ in edges)
    return "; ".join([*(_told_of(target, its) for target, its in by_target.items()), f"lag {lag:,.0f} ms; {conflicts:,} conflicts"])


def _told_of(target: str, edges: Sequence[tuple[EdgeReport, float]]) -> str:
    if starting := [edge for edge, _ in edges if edge.state is not State.STREAMING]:
        return f"{target}: {starting[0].state}, {sum(copy.rows for edge, _ in edges for copy in edge.copy):,} rows copied"
    return f"{target}: {sum(edge.counters.rows for edge, _ in edges):,} rows, {sum(rate for _, rate in edges):,.0f}/s"


def _table(title: str, heading: str, nodes: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(heading, no_wrap=True)
    for node in nodes:
        table.add_column(node, justify="right", no_wrap=True)
    table.add_column("all", no_wrap=True)
    return table


def _word(equal: bool) -> str:
    return "equal" if equal else "[red]DIFFER"


def verdict_table(verdicts: Sequence[Verdict], nodes: Sequence[str]) -> Table:
    """Return the verdicts as a table; `nodes` are the headings for what each node holds."""
    table = _table("rows on each node, and whether every one of them is the same", "table", nodes)
    for verdict in verdicts:
        table.add_row(verdict.table, *(f"{contents.rows:,}" for contents in verdict.contents), _word(verdict.equal))
    return table


def money_table(sums: Mapping[str, Sequence[int]], nodes: Sequence[str]) -> Table:
    """Return the sums of money as a table, by where it is kept and node."""
    table = _table("money on each node: all that pgbench paid in anywhere, counted in four places", "sum of", nodes)
    expected = next(iter(sums.values()))[0]
    for name, found in sums.items():
        table.add_row(name, *(f"{amount:,}" for amount in found), _word(set(found) == {expected}))
    return table


def conflict_table(conflicts: Sequence[Recorded], title: str) -> Table:
    """Return some conflicts as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("time", "on", "kind", "row", "between", "won"):
        table.add_column(heading, no_wrap=True)
    for conflict in conflicts:
        between = f"{conflict.current_origin or '-'} and {conflict.incoming_origin}"
        shown = (
            f"{conflict.resolved:%H:%M:%S.%f}"[:-3],
            conflict.node,
            conflict.kind,
            conflict.row,
            between,
            conflict.winning_node,
        )
        table.add_row(*shown)
    return table
