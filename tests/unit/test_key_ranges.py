"""What is left of a table between copied ranges, and which changes the ranges take."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from streamer.key_ranges import CopyAnew, RangeStarts, consecutive, gaps
from streamer.model import LSN, UNCHANGED, Change, CopiedRange, KeyRange, Kind, Row
from tests.changes import delete, insert, relation, table, truncate, update

LARGE = table("large", id="integer", name="text")
T = relation(LARGE)
ID = KeyRange("id")


def copied(*bounds: str | None, at: Sequence[int] = ()) -> list[CopiedRange]:
    """Ranges between these bounds."""
    positions = at or [100] * (len(bounds) - 1)
    return [
        CopiedRange(KeyRange("id", low=low, high=high), LSN(position), 1)
        for low, high, position in zip(bounds, bounds[1:], positions, strict=False)
    ]


def bounds(found: Sequence[KeyRange]) -> list[tuple[str | None, str | None]]:
    return [(one.low, one.high) for one in found]


def test_a_range_is_cut_into_consecutive_ones() -> None:
    ends = iter(["5", "10", None])
    parts = consecutive(ID, lambda rest: KeyRange("id", low=rest.low, high=next(ends)))
    assert bounds(list(parts)) == [(None, "5"), ("5", "10"), ("10", None)]


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ([], [(None, None)]),
        (copied(None, "9"), [("9", None)]),
        (copied("9", None), [(None, "9")]),
        (copied("-3", "9"), [(None, "-3"), ("9", None)]),
        (copied("10", "20") + copied(None, "9"), [("9", "10"), ("20", None)]),
        (copied(None, "9", "10", None), []),
    ],
    ids=["nothing", "the first", "the last", "one between", "with a gap", "everything"],
)
def test_what_is_missing_between_ranges(there: list[CopiedRange], missing: list[tuple[str | None, str | None]]) -> None:
    assert bounds(gaps(ID, there)) == missing


def test_what_was_cut_and_is_missing_is_whole_whatever_is_there() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    some = random.Random(seed)
    for _ in range(200):
        ends = sorted(some.sample(range(-50, 50), some.randrange(1, 8)))
        everything = copied(None, *map(str, ends), None)
        there = some.sample(everything, some.randrange(len(everything) + 1))
        found = [*(one.range for one in there), *gaps(ID, there)]
        for value in range(-55, 55):
            holding = [r for r in found if (r.low is None or value > int(r.low)) and (r.high is None or value <= int(r.high))]
            assert len(holding) == 1


#: changes of rows up to 5 begin at 100, up to 10 at 300, others at 200
STARTS = RangeStarts(LARGE.table, copied("10", None, at=[200]) + copied(None, "5", "10", at=[100, 300]))


def taken(change: Change, position: int) -> list[Change]:
    def changes() -> Iterator[Change]:
        return STARTS.changes(change, lambda start: position >= start)

    return list(changes())


@pytest.mark.parametrize(("key", "first"), [("-7", 100), ("5", 100), ("6", 300), ("10", 300), ("11", 200), ("999", 200)])
def test_a_change_is_taken_from_where_the_range_of_its_row_was_copied(key: str, first: int) -> None:
    for change in (insert(T, key, "x"), update(T, key, "x"), delete(T, key, "x")):
        assert taken(change, first - 1) == []
        assert taken(change, first) == [change]


def moved(before: str, after: str, name: str | None = "x") -> Change:
    old: Row = (before, UNCHANGED)
    new: Row = (after, UNCHANGED if name is None else name)
    return (Kind.UPDATE, T, old, new)


def test_a_row_that_moves_to_another_range_is_deleted_where_only_that_is_not_known() -> None:
    change = moved("1", "7")
    assert taken(change, 99) == []
    assert taken(change, 150) == [(Kind.DELETE, T, ("1", UNCHANGED), None)]
    assert taken(change, 300) == [change]


def test_a_row_that_moves_to_another_range_is_inserted_where_only_that_is_not_known() -> None:
    assert taken(moved("7", "1"), 150) == [(Kind.INSERT, T, None, ("1", "x"))]


def test_a_row_that_moves_without_all_of_its_values_has_its_table_copied_anew() -> None:
    with pytest.raises(CopyAnew, match="does not tell all of its values"):
        taken(moved("7", "1", None), 150)
    assert taken(moved("1", "7", None), 150) == [(Kind.DELETE, T, ("1", UNCHANGED), None)]


def test_values_that_an_update_left_unchanged_are_taken_from_its_old_row() -> None:
    change: Change = (Kind.UPDATE, T, ("7", "y"), ("1", UNCHANGED))
    assert taken(change, 150) == [(Kind.INSERT, T, None, ("1", "y"))]


def test_a_truncate_is_taken_by_all_ranges_or_none() -> None:
    assert taken(truncate(T), 99) == []
    assert taken(truncate(T), 300) == [truncate(T)]
    with pytest.raises(CopyAnew, match="truncated"):
        taken(truncate(T), 250)


def test_a_change_without_the_key_has_its_table_copied_anew() -> None:
    with pytest.raises(CopyAnew, match='"id"'):
        taken(insert(relation(table("large", name="text", key=())), "x"), 150)


def test_text_is_ordered_byte_by_byte() -> None:
    whole = KeyRange("id", numeric=False)
    cut = [CopiedRange(KeyRange("id", False, None, "9f"), LSN(1), 1), CopiedRange(KeyRange("id", False, "9f", None), LSN(2), 1)]
    starts = RangeStarts(LARGE.table, cut)
    assert gaps(whole, cut[:1]) == [KeyRange("id", False, "9f", None)]
    assert list(starts.changes(insert(T, "a0", "x"), lambda start: start == 2))
    assert not list(starts.changes(insert(T, "10", "x"), lambda start: start == 2))
