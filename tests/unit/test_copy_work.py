"""What is estimated of a table that is being copied."""

from __future__ import annotations

from dataclasses import replace

from streamer.copy_work import Work, ranges_of, rows_of_a_range
from streamer.model import LSN, POSTGRES_EPOCH, CopiedRange, KeyRange
from streamer.ports import Start
from tests.changes import copy_of, table

LARGE = replace(copy_of(table("large", id="integer")), rows=1000, size=50_000, ranged=KeyRange("id"))
START = Start(LSN(5), POSTGRES_EPOCH)


def part(low: int | None, high: int | None) -> KeyRange:
    return KeyRange("id", low=None if low is None else str(low), high=None if high is None else str(high))


def work(*done: int, open_: tuple[int, ...] = ()) -> Work:
    """A table in ranges of a hundred rows, of which those with so many rows are done, and so many rows of others sent."""
    found = Work(LARGE, START, 100)
    found.before = tuple(CopiedRange(part(n, n + 1), LSN(5), rows) for n, rows in enumerate(done))
    found.open = {part(100 + n, 101 + n): rows for n, rows in enumerate(open_)}
    return found


def test_what_has_not_begun_is_judged_by_its_statistics() -> None:
    found = work().report()
    assert (found.rows, found.total_ranges, found.total_bytes, found.remaining) == (0, 10, 50_000, None)


def test_ranges_that_turn_out_larger_are_fewer() -> None:
    assert work(200, 200).report().total_ranges == 2 + 3
    assert work(200, 200, open_=(10, 10, 10, 10)).report().total_ranges == 2 + 4


def test_what_is_cut_to_the_end_is_known() -> None:
    found = work(200, open_=(10,))
    found.cut = True
    assert found.report().total_ranges == 2


def test_a_table_as_a_whole_has_no_ranges() -> None:
    found = work()
    found.open = {None: 10}
    assert (found.report().ranges, found.report().total_ranges) == (0, 0)


def test_bytes_are_judged_by_those_that_rows_had_so_far() -> None:
    found = work(open_=(100,))
    found.bytes = 1000
    assert found.report().total_bytes == 10_000


def test_a_table_larger_than_it_was_told_has_nothing_left() -> None:
    found = work(900, open_=(200,))
    assert (found.report().rows, found.report().remaining) == (1100, None)


def test_small_tables_and_those_without_a_fitting_key_are_not_cut() -> None:
    assert ranges_of(LARGE, 100) == 10
    assert ranges_of(LARGE, 1000) == 0
    assert ranges_of(replace(LARGE, ranged=None), 100) == 0


def test_ranges_of_long_rows_have_fewer_of_them() -> None:
    assert rows_of_a_range(replace(LARGE, size=1000 * (1 << 20)), 500_000) == 256
    assert rows_of_a_range(replace(LARGE, size=0), 500_000) == 500_000
