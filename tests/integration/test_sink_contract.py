"""What every sink must do, said once and run over each of them: transactions, progress, refusals and loads.

A new sink is one entry in `targets.TARGETS`. Tests look at the target from outside, as another program would. The rest of
the contract is in test_sink_contract_changes.py and test_sink_contract_values.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from streamer.copytext import format_rows
from streamer.errors import ApplyError, SchemaError, StreamerError
from streamer.model import (
    LSN,
    UNCHANGED,
    ColumnDefinition,
    Group,
    Identity,
    TableDefinition,
    TableName,
)
from streamer.ports import Sink, Start, Written
from tests.changes import ITEMS, PLAIN, copy_of, delete, group, insert, relation, table, update, write
from tests.integration.targets import BEGIN, SLOT, Target, keeps_rows, opened, progress_of, written
from tests.waiting import wait_for

# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_none_at_first_and_survives_reopening(target: Target) -> None:
    target.create(ITEMS)
    sink = target.sink()
    assert sink.open() is None
    sink.begin(SLOT, BEGIN)
    assert sink.durable() == BEGIN
    sink.close()
    with opened(target) as sink:
        write(sink, group(insert(relation(ITEMS), "1", "a", None), to=300))
        wait_for(lambda: sink.durable() == LSN(300), "the group to be durable")
    progress = progress_of(target)
    assert (progress.slot, progress.position, progress.copied) == (SLOT, LSN(300), {})


def test_another_timeline_is_recorded_and_survives_reopening(target: Target) -> None:
    target.create(ITEMS)
    promoted = replace(SLOT, system_identifier=f"{SLOT.cluster}/2")
    with opened(target) as sink:
        sink.follow(promoted)
    progress = progress_of(target)
    assert (progress.slot, progress.slot.timeline, progress.position) == (promoted, 2, BEGIN)


def test_a_groups_rows_and_progress_become_visible_together(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(items, "1", "a", None), to=150, complete=False))
        assert (target.rows(ITEMS), target.position(), sink.durable()) == ([], BEGIN, BEGIN)
        write(sink, group(insert(items, "2", "b", None), to=200))
        assert (target.rows(ITEMS), target.position()) == ([("1", "a", None), ("2", "b", None)], LSN(200))


@keeps_rows
def test_a_failed_group_leaves_nothing(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(items, "1", "a", None)))
        with pytest.raises(ApplyError):
            write(sink, group(insert(items, "2", "b", None), insert(items, "1", "again", None), to=300))
    assert (target.rows(ITEMS), target.position()) == ([("1", "a", None)], LSN(200))


def test_an_incomplete_group_is_lost_on_close(target: Target) -> None:
    target.create(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(relation(ITEMS), "1", "a", None), complete=False))
        sink.close()
        sink.close()
    assert (target.rows(ITEMS), target.position()) == ([], BEGIN)
    with opened(target) as sink:
        write(sink, group(insert(relation(ITEMS), "1", "a", None)))
    assert target.rows(ITEMS) == [("1", "a", None)]


@keeps_rows
def test_a_failure_late_in_a_transaction_of_several_groups_takes_all_of_it_back(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(items, "1", "a", None), complete=False))
        with pytest.raises(ApplyError):
            write(sink, group(insert(items, "1", "b", None)))
    assert (target.rows(ITEMS), target.position()) == ([], BEGIN)


@keeps_rows
def test_a_group_that_is_replayed_does_not_take_back_the_groups_before_it(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        for row in ("1", "2"):
            write(sink, group(insert(items, row, "a", None), complete=False))
        # an update that finds nothing and then the insert contradict each other, so they are replayed one by one
        write(sink, group(update(items, "3", "b", None), insert(items, "3", "c", None)))
    assert target.rows(ITEMS) == [("1", "a", None), ("2", "a", None), ("3", "c", None)]


def test_a_transaction_of_several_big_groups_is_applied_whole(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        for start in range(0, 600, 200):
            numbers = range(start, start + 200)
            write(sink, group(*(insert(items, str(i), "a", None) for i in numbers), complete=False))
            write(sink, group(*(update(items, str(i), "b", "1.50") for i in numbers), complete=False))
        assert target.rows(ITEMS) == []
        write(sink, group(*(delete(items, str(i), None, None) for i in range(0, 600, 2)), to=300))
    assert len(rows := target.rows(ITEMS)) == 300
    assert {row[1:] for row in rows} == {("b", "1.50")}


def test_of_two_sinks_on_one_edge_only_one_writes(target: Target) -> None:
    target.create(PLAIN)
    first_group = group(insert(relation(PLAIN), "1", "a"))
    with opened(target) as first:
        second = target.sink()
        try:
            with pytest.raises(StreamerError, match="shop: a -> b"):
                _race(first, second, first_group)
        finally:
            second.close()
        write(first, group(insert(relation(PLAIN), "2", "b"), to=300))
    assert target.rows(PLAIN) in ([("1", "a"), ("2", "b")], [("2", "b")])
    assert target.position() == LSN(300)


def _race(first: Sink, second: Sink, both: Group) -> None:
    """Either the second is refused at once, or the slower of the two."""
    second.open()
    write(first, both)
    write(second, both)


def test_a_sink_that_was_closed_leaves_the_edge_to_the_next(target: Target) -> None:
    target.create(PLAIN)
    for number in range(3):
        with opened(target) as sink:
            write(sink, group(insert(relation(PLAIN), str(number), "a"), to=200 + number))
    assert target.rows(PLAIN) == [("0", "a"), ("1", "a"), ("2", "a")]


# -- refusals ---------------------------------------------------------------------------------------------------------


@keeps_rows
def test_a_duplicate_insert_is_an_error_that_names_table_and_key(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(items, "41", "a", None)))
        with pytest.raises(ApplyError, match=r"public\.t.*41"):
            write(sink, group(insert(items, "42", "b", None), insert(items, "41", "c", None), to=300))


@keeps_rows
def test_a_row_inserted_twice_in_one_group_is_an_error(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.t.*41"):
        write(sink, group(insert(items, "41", "a", None), insert(items, "41", "b", None)))


def test_a_group_that_only_fits_in_source_order_is_applied_in_it(target: Target) -> None:
    named = table("named", id="integer", name="text")
    target.create(named, "name")
    r = relation(named)
    rows, done = written(
        target,
        named,
        group(insert(r, "1", "a"), insert(r, "2", "b")),
        group(update(r, "1", "free"), update(r, "2", "a"), update(r, "1", "b"), insert(r, "3", "c"), to=300),
    )
    assert rows == [("1", "b"), ("2", "a"), ("3", "c")]
    assert done == Written(inserted=1, updated=3)


def test_a_replay_keeps_what_earlier_groups_of_the_transaction_did(target: Target) -> None:
    named = table("named", id="integer", name="text")
    target.create(named, "name")
    r = relation(named)
    with opened(target) as sink:
        write(sink, group(insert(r, "1", "a"), insert(r, "2", "b"), complete=False))
        write(sink, group(update(r, "1", "free"), update(r, "2", "a"), update(r, "1", "b"), complete=False))
        write(sink, group(insert(r, "3", "c"), to=300))
    assert target.rows(named) == [("1", "b"), ("2", "a"), ("3", "c")]


@keeps_rows
def test_a_missing_column_is_an_error_that_names_it(target: Target) -> None:
    target.create(ITEMS)
    wider = relation(table(id="integer", name="text", price="numeric", colour="text"))
    with opened(target) as sink, pytest.raises(SchemaError, match=r"public\.t.*colour"):
        write(sink, group(insert(wider, "1", "a", None, "red")))


@keeps_rows
def test_a_missing_table_is_an_error_that_names_it(target: Target) -> None:
    with opened(target) as sink:
        assert not sink.has(ITEMS.table)
        with pytest.raises(SchemaError, match=r"public\.t"):
            sink.is_empty(ITEMS.table)
        with pytest.raises(SchemaError, match=r"public\.t.*setup"):
            write(sink, group(insert(relation(ITEMS), "1", "a", None)))


def test_columns_that_only_the_target_has_are_left_alone(target: Target) -> None:
    target.create(ITEMS)
    narrow = relation(table(id="integer", name="text"))
    rows, _ = written(
        target,
        ITEMS,
        group(insert(relation(ITEMS), "1", "a", "5"), insert(narrow, "2", "b")),
        group(update(narrow, "1", "c"), to=300),
        group(update(narrow, "3", "c", old=("1", UNCHANGED)), to=400),
    )
    assert rows == [("2", "b", None), ("3", "c", "5")]


@keeps_rows
def test_a_generated_column_of_the_target_is_never_written(target: Target) -> None:
    columns = [ColumnDefinition(name, "integer", 23, name == "id", None, "", False) for name in ("id", "a")]
    columns.append(ColumnDefinition("g", "integer", 23, False, "a * 2", "", True))
    definition = TableDefinition(TableName("public", "made"), tuple(columns), ("id",))
    target.create(definition)
    r = relation(definition)
    full = relation(definition, Identity.FULL)
    rows, _ = written(
        target,
        definition,
        group(*(insert(r, str(i), str(i), "77") for i in range(20))),
        group(
            *(update(r, str(i), "3", "77") for i in range(9)), update(r, "30", "4", "77", old=("10", UNCHANGED, UNCHANGED)), to=300
        ),
        group(delete(full, "19", "19", "77"), update(full, "18", "5", "77", old=("18", "18", "77")), to=400),
    )
    assert {row[0] for row in rows} == {*map(str, range(19)), "30"} - {"10"}
    assert all(int(a or 0) * 2 == int(g or 0) for _, a, g in rows)


# -- loading ----------------------------------------------------------------------------------------------------------


@keeps_rows
def test_a_load_replaces_the_rows_and_is_recorded(target: Target) -> None:
    target.create(ITEMS)
    blocks = [format_rows([(str(i), "a\tb", None) for i in part]) for part in (range(1000), range(1000, 1500))]
    with opened(target) as sink:
        assert sink.has(ITEMS.table)
        assert sink.is_empty(ITEMS.table)
        write(sink, group(insert(relation(ITEMS), "7777", "old", None)))
        assert not sink.is_empty(ITEMS.table)
        assert sink.load(copy_of(ITEMS), Start(LSN(180)), blocks) == 1500
        write(sink, group(delete(relation(ITEMS), "0", None, None), to=300))
    assert set(target.rows(ITEMS)) == {(str(i), "a\tb", None) for i in range(1, 1500)}
    progress = progress_of(target)
    assert (progress.position, progress.copied) == (LSN(300), {ITEMS.table: LSN(180)})


def test_a_load_that_is_not_to_replace_leaves_the_rows_that_are_there(target: Target) -> None:
    target.create(ITEMS)
    with opened(target) as sink:
        write(sink, group(insert(relation(ITEMS), "7", "there", None)))
        assert sink.load(copy_of(ITEMS), Start(LSN(180), replace=False), [format_rows([("1", "new", None)])]) == 1
    assert target.rows(ITEMS) == [("1", "new", None), ("7", "there", None)]
    assert progress_of(target).copied == {ITEMS.table: LSN(180)}


def test_the_target_tells_the_progress_of_its_edges(target: Target) -> None:
    target.create(ITEMS)
    with opened(target) as sink:
        sink.keep(ITEMS.table, BEGIN)
        (progress,) = sink.progress_by_source().values()
    assert (progress.slot, progress.position, progress.copied) == (SLOT, BEGIN, {ITEMS.table: BEGIN})


def test_a_lock_can_be_had_again_once_it_is_given_back_or_the_sink_closed(target: Target) -> None:
    with opened(target) as sink:
        assert [sink.try_lock("joins"), sink.try_lock("joins"), sink.try_lock("streams a")] == [True] * 3
        sink.unlock("joins")
        sink.unlock("joins")
        assert sink.try_lock("joins")
    with opened(target) as sink:
        wait_for(lambda: sink.try_lock("joins"), "the lock to be free again")


def test_an_empty_load_is_recorded_too(target: Target) -> None:
    blobs = table("blobs", id="integer", data="bytea")
    target.create(ITEMS)
    target.create(blobs)
    with opened(target) as sink:
        assert sink.load(copy_of(ITEMS), Start(LSN(180)), []) == 0
        assert sink.load(copy_of(blobs), Start(LSN(180)), [b""]) == 0
    progress = progress_of(target)
    assert progress.copied == {ITEMS.table: LSN(180), blobs.table: LSN(180)}


def test_a_table_that_needs_no_copy_is_recorded(target: Target) -> None:
    target.create(ITEMS)
    with opened(target) as sink:
        sink.keep(ITEMS.table, BEGIN)
    progress = progress_of(target)
    assert progress.copied == {ITEMS.table: BEGIN}


def test_a_load_whose_source_fails_leaves_the_table_as_before(target: Target) -> None:
    target.create(ITEMS)

    def blocks() -> Iterator[bytes]:
        yield format_rows([("1", "new", None), ("2", "new", None)])
        raise ConnectionAbortedError("the source has gone away")

    _fails_to_load(target, blocks(), ConnectionAbortedError)


@keeps_rows
def test_a_load_that_the_target_refuses_leaves_the_table_as_before(target: Target) -> None:
    target.create(ITEMS)
    rows = [("1", "new", None), ("2", "new", None), ("2", "twice", None)]
    _fails_to_load(target, iter([format_rows(rows)]), StreamerError)


def _fails_to_load(target: Target, blocks: Iterator[bytes], error: type[Exception]) -> None:
    with opened(target) as sink:
        write(sink, group(insert(relation(ITEMS), "1", "old", None)))
        with pytest.raises(error):
            sink.load(copy_of(ITEMS), Start(LSN(180)), blocks)
    assert target.rows(ITEMS) == [("1", "old", None)]
    progress = progress_of(target)
    assert progress.copied == {}


@keeps_rows
def test_a_load_after_a_broken_one_is_whole(target: Target) -> None:
    target.create(ITEMS)
    with opened(target) as sink:
        with pytest.raises(StreamerError):
            sink.load(copy_of(ITEMS), Start(LSN(180)), [format_rows([("1", "a", None), ("1", "b", None)])])
        assert sink.load(copy_of(ITEMS), Start(LSN(190)), [format_rows([("1", "a", None)])]) == 1
    assert target.rows(ITEMS) == [("1", "a", None)]
