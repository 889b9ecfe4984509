"""What the demo draws fits a terminal of 80 columns, and its rates are those of the last second."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streamer.demo.compare import Contents, Verdict
from streamer.demo.screen import Rate, Screen, verdict_table
from streamer.report import CopyReport, Counters, EdgeReport, State, StreamReport

EDGES = [
    EdgeReport(
        "demo", "shop", "copy", State.COPYING, "", 0, 0.0, 0.0, 0, Counters(), None, [CopyReport("t", 90_000, 200_000, False)]
    ),
    EdgeReport("demo", "shop", "file", State.STREAMING, "0/1", 33_554_432, 1.5, 0.002, 0, Counters(updated=123_456), None),
]
REPORT = [StreamReport("demo", "shop", State.STREAMING, "0/1", None, EDGES)]


def drawn(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Screen(console, lambda: REPORT) as screen:
        screen.show("pgbench writes")
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_live_table_shows_every_number_whole_in_80_columns() -> None:
    text = drawn(terminal=True)
    for shown in ("shop -> copy", "shop -> file", "copying", "streaming", "90,000", "123,456", "1,500", "33,554,432", "lag bytes"):
        assert shown in text
    assert "…" not in text


def test_without_a_terminal_there_is_a_line_instead() -> None:
    (line,) = drawn(terminal=False).splitlines()
    assert line.endswith("copy: copying, 90,000 rows copied; file: streaming, 123,456 rows, 0/s, lag 1,500 ms, 33,554,432 bytes")


def test_the_verdict_fits_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    same, other = Contents(200_000, "0123abcd"), Contents(199_999, "4567cdef")
    verdicts = [Verdict("pgbench_accounts", (same, same, same)), Verdict("pgbench_branches", (same, same, other))]
    console.print(verdict_table(verdicts, ("shop", "copy", "file")))
    text = console.export_text()
    assert "…" not in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "pgbench" in line] == ["equal", "NOT EQUAL"]


def test_a_rate_is_the_growth_over_the_last_second() -> None:
    rate = Rate()
    counts = [(0.0, 0), (0.5, 100), (1.0, 200), (1.5, 1200), (2.0, 2200), (3.0, 2200), (4.0, 2200)]
    assert [rate.at(now, count) for now, count in counts] == pytest.approx([0, 200, 200, 1100, 2000, 0, 0])
