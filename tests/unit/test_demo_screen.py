"""What the demo draws fits a terminal of 80 columns, and its rates are those of the last second."""

from __future__ import annotations

import io
from collections import Counter
from datetime import UTC, datetime

import pytest
from rich.console import Console, RenderableType

from streamer.copy_report import CopyReport
from streamer.demo.compare import Contents, Verdict
from streamer.demo.conflicts import Recorded, by_kind, examples
from streamer.demo.screen import Rate, Screen, conflict_table, money_table, verdict_table
from streamer.report import Counters, EdgeReport, State, StreamReport

NODES = ("a", "b", "c", "d", "file")
BUSY = Counters(updated=123_456, conflicts=Counter(update_deleted=7))
EDGES = [
    EdgeReport(
        "shop", "a", "d", State.COPYING, "", 0, 0.0, 0.0, 0.0, 0, Counters(), None, [CopyReport("t", 90_000, 200_000, False)]
    ),
    EdgeReport("archive", "c", "file", State.STREAMING, "0/1", 33_554_432, 1.5, 0.002, 0.0, 0, BUSY, None),
]
REPORT = [StreamReport("shop", "a", State.STREAMING, "0/1", None, EDGES)]


def drawn(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Screen(console, lambda: REPORT) as screen:
        screen.show("pgbench writes")
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def printed(shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(shown)
    return console.export_text()


def test_the_live_table_shows_every_number_whole_in_80_columns() -> None:
    text = drawn(terminal=True)
    for shown in ("a -> d", "c -> file", "copying", "streaming", "90,000", "123,456", "1,500", "conflicts", "7"):
        assert shown in text
    assert "…" not in text


def test_without_a_terminal_there_is_a_line_instead() -> None:
    (line,) = drawn(terminal=False).splitlines()
    assert line.endswith("d: copying, 90,000 rows copied; file: 123,456 rows, 0/s; lag 1,500 ms; 7 conflicts")


def test_the_verdict_fits_80_columns() -> None:
    same, other = Contents(200_000, "0123abcd"), Contents(199_999, "4567cdef")
    verdicts = [Verdict("pgbench_accounts", (same,) * 5), Verdict("pgbench_branches", (same, same, same, same, other))]
    text = printed(verdict_table(verdicts, NODES))
    assert "…" not in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "pgbench" in line] == ["equal", "DIFFER"]


def test_money_must_be_the_same_in_all_places_and_on_all_nodes() -> None:
    text = printed(money_table({"accounts": [-234_567] * 5, "tellers": [-234_566] * 5}, NODES))
    assert "…" not in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "234,56" in line] == ["equal", "DIFFER"]


def conflict(kind: str, second: int, winner: str = "incoming") -> Recorded:
    moment = datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)
    return Recorded(moment, "file", kind, "prices 1", "a", "b", winner)


def test_conflicts_fit_80_columns_and_tell_who_won() -> None:
    longest = conflict("multiple_unique_conflicts", 1)
    text = printed(conflict_table([longest, conflict("update_deleted", 2, "current")], "2 conflicts"))
    assert "…" not in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "prices" in line] == ["b", "a"]


def test_the_examples_are_of_all_kinds_and_in_order() -> None:
    found = [conflict("a", 1), conflict("a", 2), conflict("b", 3), conflict("a", 4), conflict("c", 5)]
    assert by_kind(found) == {"a": 3, "b": 1, "c": 1}
    assert [c.kind for c in examples(found, 3)] == ["a", "b", "c"]
    assert [c.resolved.second for c in examples(found, 4)] == [1, 2, 3, 5]


def test_a_rate_is_the_growth_over_the_last_second() -> None:
    rate = Rate()
    counts = [(0.0, 0), (0.5, 100), (1.0, 200), (1.5, 1200), (2.0, 2200), (3.0, 2200), (4.0, 2200)]
    assert [rate.at(now, count) for now, count in counts] == pytest.approx([0, 200, 200, 1100, 2000, 0, 0])
