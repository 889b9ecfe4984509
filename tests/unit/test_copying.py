"""Which tables join an edge, which are copied, and what is left when a copy is broken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from streamer.copying import InitialCopy, Policy, prepare
from streamer.errors import ConnectError, SchemaError, SlotError, SourceError, StreamerError, TakenError, TargetError
from streamer.model import LSN, EdgeName, KeyRange, SlotIdentity, TableName
from streamer.ports import CopyTable, Held, Progress
from streamer.workers import BrokenOff
from tests.changes import copy_of, table
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.memory_source import SLOT, START, MemorySnapshot, MemorySource

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


def test_whoever_starts_over_while_streamer_runs_does_not_keep_rows_that_lack_something() -> None:
    """He is told to run with copy = "always" then, which a table that is recorded as kept would not hear any more."""
    source, target, copy = MemorySource([FIRST]), database(FIRST), InitialCopy(EDGE, "if-empty", 1)

    def again() -> None:
        with closing(MemorySink(EDGE, target)) as sink:
            prepare(EDGE, source, sink, copy, lambda: False)

    again()
    target.tables[FIRST.table].rows.append({"id": "1"})
    target.progress.clear()
    with pytest.raises(SlotError, match=r'table "public\.first" has rows there') as caught:
        again()
    assert 'start streamer run anew: with copy = "always"' in caught.value.hint
    source.rows_of[FIRST.table] = [("1",), ("2",)]
    source.commit()
    join(source, target, "always")
    assert ids(target, FIRST.table) == ["1", "2"]
    target.tables[FIRST.table].rows.clear()
    target.progress.clear()
    again()  # what is empty is copied, as the config says
    assert ids(target, FIRST.table) == ["1", "2"]


def test_a_daemon_that_stood_by_does_not_keep_them_either() -> None:
    source, target, copy = MemorySource([FIRST]), database(FIRST), InitialCopy(EDGE, "if-empty", 1)
    target.tables[FIRST.table].rows.append({"id": "1"})
    target.fail_next("open", TakenError("written by another session"))
    for error in (TakenError, SlotError):
        with closing(MemorySink(EDGE, target)) as sink, pytest.raises(error):
            prepare(EDGE, source, sink, copy, lambda: False)


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


def test_what_a_target_refuses_of_a_copy_is_told_with_the_table_and_a_lost_connection_is_not() -> None:
    source, target = MemorySource([FIRST]), database(FIRST)
    for error, told in (
        (TargetError("edge shop a->b refuses: no", "cure it"), 'copy of table "public.first": edge shop a->b refuses: no; cure it'),
        (TargetError('table "public.first" is full'), 'table "public.first" is full'),
        (ConnectError('node "b" is gone'), 'node "b" is gone'),
    ):
        target.fail_next("load", error)
        with pytest.raises(type(error)) as raised:
            join(source, target)
        assert str(raised.value) == told


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
        def rows(
            self, table: TableName, columns: Sequence[str], where: str = "", within: KeyRange | None = None
        ) -> Iterator[Iterator[bytes]]:
            if table == name:
                raise ConnectError("gone")
            with super().rows(table, columns, where, within) as blocks:
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


def test_a_table_without_a_key_that_triggers_cannot_capture_is_not_said_to_be_made_after_setup() -> None:
    keyless = replace(SECOND, carried=False, by_triggers=True, key=())
    with capture_logs() as lines:
        join(MemorySource([replace(FIRST, by_triggers=True), keyless]), database(FIRST, SECOND))
    (ignored,) = (line for line in lines if line["event"] == "table_ignored")
    assert "has no key by which triggers could tell its rows apart" in ignored["reason"]
    assert "streamer tables --sync shop" in ignored["remedy"]


def test_a_table_that_the_stream_no_longer_carries_is_an_error() -> None:
    target = database(FIRST)
    join(MemorySource([FIRST]), target)
    with pytest.raises(SourceError, match=r'"public.first" is no longer in the publication of slot "streamer_shop_a"'):
        join(MemorySource([replace(FIRST, carried=False)]), target)


def test_a_table_whose_triggers_are_gone_when_the_stream_is_restarted_is_not_said_to_lack_a_publication() -> None:
    target = database(FIRST)
    join(MemorySource([FIRST]), target)
    with pytest.raises(SourceError, match=r'the triggers of table "public.first" on "a" are gone or disabled'):
        join(MemorySource([replace(FIRST, carried=False, by_triggers=True)]), target)


def test_a_table_that_the_sync_selects_no_longer_is_forgotten() -> None:
    target = database(FIRST, SECOND)
    join(MemorySource([FIRST, SECOND]), target)
    assert join(MemorySource([SECOND]), target).copied == {SECOND.table: START}
    assert target.progress[EDGE].copied == {SECOND.table: START}


# -- several sources ---------------------------------------------------------------------------------------------------------------

OTHER = EdgeName("shop", "c", "b")
OTHER_SLOT = SlotIdentity("7001", "shop", "streamer_shop_c")


def held(position: int, **copied: int) -> dict[str, Held]:
    """What a source holds of "c"."""
    tables = {TableName("public", name): LSN(at) for name, at in copied.items()}
    return {"c": Held(Progress(OTHER_SLOT, LSN(position), tables), datetime.now(UTC))}


def fed_by_two(*tables: CopyTable, begun: int | None = 400) -> MemoryDatabase:
    """A target of "a" and "c", where the edge from "c" has begun at this position."""
    target = database(*tables)
    if begun is not None:
        target.progress[OTHER] = Progress(OTHER_SLOT, LSN(begun), {})
    return target


def join_beside(
    source: MemorySource, target: MemoryDatabase, edge: EdgeName = EDGE, patience: int = 0
) -> tuple[Progress, list[str]]:
    """Join while another source feeds the target, giving up after so many looks; return what was waited for as well."""
    copy = InitialCopy(edge, "if-empty", 1, ("a", "c"))
    waited: list[str] = []

    def stopped() -> bool:
        if copy.obstacle is not None and copy.obstacle not in waited:
            waited.append(copy.obstacle)
        return copy.obstacle is not None and len(waited) > patience

    sink = MemorySink(edge, target)
    progress = Progress(SLOT, START, {})
    with suppress(BrokenOff), closing(sink):
        progress = prepare(edge, source, sink, copy, stopped)
    return progress, waited


def test_a_copy_records_where_the_other_source_goes_on() -> None:
    source, target = MemorySource([FIRST]), fed_by_two(FIRST)
    source.rows_of[FIRST.table] = [("1",)]
    source.holds = held(500, first=450)
    join_beside(source, target)
    assert target.progress[OTHER].copied == {FIRST.table: LSN(500)}
    other = MemorySource([FIRST])
    other.slot, other.confirmed, other.end = OTHER_SLOT, LSN(400), LSN(600)
    other.rows_of[FIRST.table] = [("1",), ("2",)]
    progress, waited = join_beside(other, target, OTHER)
    assert (progress.copied, waited, ids(target, FIRST.table)) == ({FIRST.table: LSN(500)}, [], ["1"])


@pytest.mark.parametrize(
    ("begun", "holds", "streams", "expected"),
    [
        (None, held(500, first=450), False, "edge shop: c -> b has not begun"),
        (400, {}, False, 'edge shop: c -> a has not begun with table "public.first"'),
        (400, held(500), False, 'edge shop: c -> a has not begun with table "public.first"'),
        (600, held(500, first=450), False, "edge shop: c -> a is behind edge shop: c -> b"),
        (400, held(500, first=450), True, "edge shop: c -> b streams already"),
    ],
    ids=["not begun", "unknown to the source", "without the table", "ahead", "streaming"],
)
def test_a_copy_waits_until_it_can_say_where_the_other_source_goes_on(
    begun: int | None, holds: dict[str, Held], streams: bool, expected: str
) -> None:
    source, target = MemorySource([FIRST]), fed_by_two(FIRST, begun=begun)
    source.rows_of[FIRST.table] = [("1",)]
    source.holds = holds
    if streams:
        MemorySink(OTHER, target).try_lock("streams c")
    _, waited = join_beside(source, target)
    assert len(waited) == 1
    assert waited[0].startswith(expected)
    assert ids(target, FIRST.table) == []
    assert target.locks.keys() == ({"streams c"} if streams else set())


def test_who_has_nothing_to_copy_waits_for_what_the_other_source_has() -> None:
    empty, target = MemorySource([FIRST]), fed_by_two(FIRST)
    _, waited = join_beside(empty, target)
    assert waited == ['edge shop: c -> b has not begun with table "public.first"']
    full = MemorySource([FIRST])
    full.slot, full.confirmed, full.end = OTHER_SLOT, LSN(400), LSN(600)
    full.rows_of[FIRST.table] = [("1",)]
    full.holds = {"a": Held(Progress(SLOT, LSN(1020), {FIRST.table: START}), datetime.now(UTC))}
    join_beside(full, target, OTHER)
    progress, waited = join_beside(empty, target)
    assert (progress.copied, waited, ids(target, FIRST.table)) == ({FIRST.table: LSN(1020)}, [], ["1"])


def test_a_table_that_was_empty_is_copied_although_rows_came_while_we_waited() -> None:
    source, target = MemorySource([FIRST]), fed_by_two(FIRST)
    source.rows_of[FIRST.table] = [("1",)]
    copy, sink = InitialCopy(EDGE, "if-empty", 1, ("a", "c")), MemorySink(EDGE, target)

    def waiting() -> bool:
        if copy.obstacle is not None:
            target.tables[FIRST.table].rows = [{"id": "9"}]
            source.holds = held(500, first=450)
        return False

    prepare(EDGE, source, sink, copy, waiting)
    assert ids(target, FIRST.table) == ["9", "1"]
    assert target.locks == {"streams a": EDGE}


def test_only_one_edge_decides_at_a_time() -> None:
    source, target = MemorySource([FIRST]), fed_by_two(FIRST)
    MemorySink(OTHER, target).try_lock("joins")
    _, waited = join_beside(source, target)
    assert waited == ["another edge into the same target copies, or is about to"]
