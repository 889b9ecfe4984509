"""Which tables join an edge, which are copied, and what is left when a copy is broken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from streamer.copying import InitialCopy, Policy, prepare
from streamer.errors import ConnectError, SchemaError, SourceError, StreamerError
from streamer.model import EdgeName, TableName
from streamer.ports import CopyTable, Progress
from tests.changes import copy_of, table
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.memory_source import START, MemorySnapshot, MemorySource

EDGE = EdgeName("shop", "a", "b")
FIRST, SECOND = copy_of(table("first", id="integer")), copy_of(table("second", id="integer"))


def database(*tables: CopyTable) -> MemoryDatabase:
    made = MemoryDatabase()
    for t in tables:
        made.tables[t.table] = MemoryTable(t.columns, ("id",))
    return made


def join(source: MemorySource, target: MemoryDatabase, policy: Policy = "if-empty", stopped: bool = False) -> Progress:
    sink = MemorySink(EDGE, target)
    try:
        return prepare(EDGE, source, sink, InitialCopy(EDGE, policy, 1), lambda: stopped)
    finally:
        sink.close()


def ids(target: MemoryDatabase, name: TableName) -> list[str | None]:
    return [row["id"] for row in target.tables[name].rows]


@pytest.mark.parametrize(
    ("policy", "expected"), [("never", ["9"]), ("if-empty", ["9"]), ("always", ["1", "2"])], ids=["never", "if-empty", "always"]
)
def test_the_policy_says_what_becomes_of_rows_that_are_there(policy: Policy, expected: list[str]) -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    source.rows_of[FIRST.table] = [("1",), ("2",)]
    target.tables[FIRST.table].rows.append({"id": "9"})
    source.commit()
    progress = join(source, target, policy)
    assert ids(target, FIRST.table) == expected
    assert progress.copied == {FIRST.table: source.end if policy == "always" else START}


def test_a_copied_table_is_not_copied_again() -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    join(source, target)
    source.rows_of[FIRST.table] = [("1",)]
    join(source, target, "always")
    assert ids(target, FIRST.table) == []


def test_a_copy_that_fails_leaves_nothing_and_is_made_again() -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    source.rows_of[FIRST.table] = [("1",)]
    target.fail_next("load", ConnectError("gone"))
    with pytest.raises(ConnectError):
        join(source, target)
    assert target.progress[EDGE].copied == {}
    join(source, target)
    assert ids(target, FIRST.table) == ["1"]


def test_what_was_copied_before_another_table_failed_is_kept_with_its_own_position() -> None:
    source, target = MemorySource([replace(FIRST, rows=9), SECOND]), database(FIRST, SECOND)
    source.rows_of = {FIRST.table: [("1",)], SECOND.table: [("2",)]}
    before = source.end
    with pytest.raises(ConnectError), failing(source, SECOND.table):
        join(source, target)
    source.commit()
    source.rows_of[FIRST.table] = []
    progress = join(source, target)
    assert (ids(target, FIRST.table), ids(target, SECOND.table)) == (["1"], ["2"])
    assert progress.copied == {FIRST.table: before, SECOND.table: source.end}


@contextmanager
def failing(source: MemorySource, name: TableName) -> Iterator[None]:
    """Rows of this table cannot be read while the context lasts."""

    class Snapshot(MemorySnapshot):
        @contextmanager
        def rows(self, table: TableName, columns: Sequence[str]) -> Iterator[Iterator[bytes]]:
            if table == name:
                raise ConnectError("gone")
            with super().rows(table, columns) as blocks:
                yield blocks

    @contextmanager
    def snapshot() -> Iterator[MemorySnapshot]:
        yield Snapshot(source.end, source.rows_of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "snapshot", snapshot)
        yield


def test_a_copy_ends_when_we_are_told_to_stop() -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    source.rows_of[FIRST.table] = [("1",)]
    with pytest.raises(StreamerError, match="broken off"):
        join(source, target, stopped=True)
    assert ids(target, FIRST.table) == []


def test_a_missing_table_is_an_error_before_anything_was_copied() -> None:
    with pytest.raises(SchemaError, match="second"):
        join(MemorySource([FIRST, SECOND]), database(FIRST))


def test_a_table_made_since_is_left_out_until_setup_has_made_it_on_the_target() -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    join(source, target)
    later = MemorySource([FIRST, SECOND])
    later.rows_of[SECOND.table] = [("1",)]
    assert set(join(later, target).copied) == {FIRST.table}
    target.tables[SECOND.table] = MemoryTable(SECOND.columns, ("id",))
    assert set(join(later, target).copied) == {FIRST.table, SECOND.table}
    assert ids(target, SECOND.table) == ["1"]


def test_a_table_that_the_stream_does_not_carry_is_left_out() -> None:
    source = MemorySource([FIRST, replace(SECOND, carried=False)])
    assert set(join(source, database(FIRST, SECOND)).copied) == {FIRST.table}


def test_a_table_that_the_stream_no_longer_carries_is_an_error() -> None:
    target = database(FIRST)
    join(MemorySource([FIRST]), target)
    with pytest.raises(SourceError, match=r'"public.first" is no longer in the publication of slot "streamer_shop_a"'):
        join(MemorySource([replace(FIRST, carried=False)]), target)
