"""A large table is copied in ranges of its key; what is left of that when a copy is broken off, and what is copied anew."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamer import copy_jobs
from streamer.copy_report import CopyTotals
from streamer.copying import InitialCopy, Policy, prepare
from streamer.errors import ConnectError
from streamer.model import LSN, EdgeName, KeyRange
from streamer.ports import Progress
from streamer.workers import BrokenOff
from tests.changes import copy_of, group, table, write
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.memory_source import START, MemorySource
from tests.waiting import wait_for

EDGE = EdgeName("shop", "a", "b")
LARGE = replace(copy_of(table("large", id="integer", name="text")), rows=10, ranged=KeyRange("id"))


class Cuts:
    """A source and a target of a table that is copied in ranges of three rows, and what was read and written of it."""

    def __init__(self, rows: int = 10) -> None:
        self.source, self.target = MemorySource([LARGE]), MemoryDatabase()
        self.target.tables[LARGE.table] = MemoryTable(LARGE.columns, ("id",))
        self.source.rows_of[LARGE.table] = [(str(n), "old") for n in range(1, rows + 1)]

    def join(self, policy: Policy = "if-empty", copy: InitialCopy | None = None) -> Progress:
        sink = MemorySink(EDGE, self.target)
        with closing(sink):
            return prepare(EDGE, self.source, sink, copy or InitialCopy(EDGE, policy, 1, range_rows=3), lambda: False)

    def break_off(self, after: int) -> None:
        """Copy so many ranges, and fail at the next."""
        self.target.fail_later("load", ConnectError("gone"), after)
        with pytest.raises(ConnectError):
            self.join()

    @property
    def ranges(self) -> list[tuple[str | None, str | None, int]]:
        found = self.target.progress[EDGE].ranges.get(LARGE.table, ())
        return [(one.range.low, one.range.high, one.position) for one in found]

    @property
    def names(self) -> list[str | None]:
        rows = sorted(self.target.tables[LARGE.table].rows, key=lambda row: int(row["id"] or 0))
        return [row["name"] for row in rows]


def test_a_large_table_is_copied_in_ranges_of_its_key() -> None:
    cuts = Cuts()
    progress = cuts.join()
    assert cuts.ranges == [(None, "3", START), ("3", "6", START), ("6", "9", START), ("9", None, START)]
    assert progress.copied == {LARGE.table: START}
    assert sorted(int(row["id"] or 0) for row in cuts.target.tables[LARGE.table].rows) == list(range(1, 11))


def test_a_table_that_fits_into_one_range_is_copied_as_a_whole() -> None:
    cuts = Cuts(rows=2)
    cuts.join()
    assert (cuts.ranges, len(cuts.names)) == ([], 2)


def test_a_broken_copy_goes_on_with_the_ranges_that_are_missing() -> None:
    cuts = Cuts()
    cuts.break_off(after=2)
    assert cuts.target.progress[EDGE].copied == {LARGE.table: LSN(0)}
    before = cuts.source.end
    cuts.source.commit()
    cuts.source.rows_of[LARGE.table] = [(str(n), "new") for n in range(1, 13)]
    progress = cuts.join()
    assert cuts.names == ["old"] * 6 + ["new"] * 6
    assert cuts.ranges == [
        (None, "3", before),
        ("3", "6", before),
        ("6", "9", cuts.source.end),
        ("9", "12", cuts.source.end),
        ("12", None, cuts.source.end),
    ]
    assert progress.copied == {LARGE.table: cuts.source.end}


def test_a_copy_that_failed_is_not_told_as_running() -> None:
    cuts = Cuts()
    copy = InitialCopy(EDGE, "if-empty", 1, range_rows=3)
    cuts.target.fail_later("load", ConnectError("gone"), 2)
    with pytest.raises(ConnectError):
        cuts.join(copy=copy)
    assert (copy.jobs.running, copy.jobs.copied_rows, copy.jobs.reports()) == (False, 6, [])
    cuts.join(copy=copy)
    (report,) = copy.jobs.reports()
    assert (report.rows, report.ranges, report.done, copy.jobs.copied_rows) == (10, 4, True, 10)


def test_the_progress_of_all_tables_is_told_together() -> None:
    cuts, copy = Cuts(), InitialCopy(EDGE, "if-empty", 1, range_rows=3)
    seen: list[CopyTotals] = []

    def look() -> bool:
        seen.append(copy.jobs.totals())
        return False

    with closing(MemorySink(EDGE, cuts.target)) as sink:
        prepare(EDGE, cuts.source, sink, copy, look)
    assert {(one.ranges, one.total_ranges) for one in seen} >= {(n, 4) for n in range(4)}
    assert {(one.rows, one.total_rows) for one in seen} >= {(3, 10), (6, 10), (9, 10)}
    whole = copy.jobs.totals()
    assert whole == CopyTotals(1, 1, 10, 10, 4, 4, whole.bytes, whole.bytes, None, None)


def test_the_log_tells_how_far_a_long_copy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_jobs, "TELL_SECONDS", 0.0)
    cuts, copy = Cuts(), InitialCopy(EDGE, "if-empty", 1, range_rows=3)
    with closing(MemorySink(EDGE, cuts.target)) as sink, capture_logs() as logged:

        def told() -> list[Any]:
            return [record for record in logged if record["event"] == "copy_progress"]

        def look() -> bool:
            if threading.current_thread() is not threading.main_thread():  # a slow copy
                wait_for(told, "the log to tell it")
            return False

        prepare(EDGE, cuts.source, sink, copy, look)
    fields = ("tables", "rows", "of_rows", "ranges", "of_ranges", "bytes", "rate", "left")
    assert [told()[0][name] for name in fields] == ["", 0, 10, 0, 4, 0, 0, None]


def test_a_copy_that_broke_after_its_last_range_copies_nothing_again() -> None:
    cuts = Cuts()
    cuts.join()
    cuts.target.progress[EDGE].copied[LARGE.table] = LSN(0)
    cuts.source.commit()
    cuts.source.rows_of[LARGE.table] = []
    assert cuts.join().copied == {LARGE.table: START}
    assert cuts.names == ["old"] * 10


def test_with_a_quarantine_a_table_of_which_more_than_the_key_is_unique_begins_anew() -> None:
    cuts = Cuts()
    cuts.target.holds_back = True
    cuts.target.tables[LARGE.table].unique = (("name", "id"),)
    cuts.break_off(after=2)
    cuts.source.commit()
    cuts.source.rows_of[LARGE.table] = [(str(n), "new") for n in range(1, 5)]
    assert cuts.join().copied == {LARGE.table: cuts.source.end}
    assert cuts.names == ["new"] * 4


def test_rows_that_contradict_those_of_another_time_have_the_table_copied_anew() -> None:
    cuts = Cuts()
    copy = InitialCopy(EDGE, "if-empty", 1, range_rows=3)
    cuts.target.tables[LARGE.table].unique = (("name",),)
    cuts.source.rows_of[LARGE.table] = [(str(n), f"name {n}") for n in range(1, 11)]
    cuts.break_off(after=2)
    cuts.source.commit()
    swapped: list[tuple[str, ...]] = [(str(n), f"name {11 - n}") for n in range(1, 11)]
    cuts.source.rows_of[LARGE.table] = swapped
    with pytest.raises(BrokenOff):
        cuts.join(copy=copy)
    assert cuts.join(copy=copy).copied == {LARGE.table: cuts.source.end}
    assert cuts.names == [name for _, name in swapped]


def test_ranges_of_another_key_are_not_gone_on_with() -> None:
    cuts = Cuts()
    cuts.break_off(after=2)
    of = cuts.target.progress[EDGE].ranges
    of[LARGE.table] = tuple(replace(one, range=replace(one.range, column="other")) for one in of[LARGE.table])
    cuts.source.rows_of[LARGE.table] = [(str(n), "new") for n in range(1, 5)]
    cuts.join()
    assert cuts.names == ["new"] * 4


def test_rows_that_nobody_has_copied_are_kept_as_without_ranges() -> None:
    cuts = Cuts()
    cuts.target.tables[LARGE.table].rows.append({"id": "99", "name": "here"})
    cuts.join()
    assert cuts.names == ["here"]
    cuts.target.progress.clear()
    cuts.join("always")
    assert cuts.names == ["old"] * 10


def test_a_table_is_copied_again_when_that_is_asked_for() -> None:
    cuts = Cuts()
    copy = InitialCopy(EDGE, "if-empty", 1, range_rows=3)
    cuts.join(copy=copy)
    cuts.source.commit()
    cuts.source.rows_of[LARGE.table] = [("7", "new")]
    copy.copy_again(LARGE.table, "a test wants it")
    assert cuts.join(copy=copy).copied == {LARGE.table: cuts.source.end}
    assert cuts.names == ["new"]


def test_ranges_are_forgotten_when_the_stream_has_passed_them() -> None:
    cuts = Cuts()
    cuts.break_off(after=1)
    cuts.source.commit()
    cuts.join()
    assert len(cuts.ranges) == 4
    sink = MemorySink(EDGE, cuts.target)
    with closing(sink):
        sink.open()
        write(sink, group(to=cuts.source.end))
    assert cuts.join().ranges == {}
    assert cuts.ranges == []
