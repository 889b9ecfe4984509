"""Batches of a reader that the test drives: what is in them, whoever commits when, and what becomes of the deltas."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from streamer.capture import batches as recorded
from streamer.capture import trigger_reader, trigger_snapshot
from streamer.capture.catalog import DEFERRABLE, FULL_TEXT, SourceTable, read_tables
from streamer.capture.trigger_reader import TriggerReader
from streamer.capture.trigger_source import TriggerSource
from streamer.errors import ConnectError, SlotError, TakenError
from streamer.model import LSN, Kind, Piece, TableName
from streamer.session import Connection, connect
from tests.integration.delta_readers import Rows, apply, captured, place, reading
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

T = TableName("public", "t")
PENDING = "SELECT count(*) FROM streamer.delta"


@pytest.fixture
def source(trigger_source: Database) -> TriggerSource:
    """A source of one table."""
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    return captured(trigger_source)[1]


# -- what a batch holds ------------------------------------------------------------------------------------------------------------


def test_a_batch_has_the_net_effect_of_what_was_committed_before_it(source: TriggerSource, trigger_source: Database) -> None:
    trigger_source.execute("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 6) i")
    with reading(source, place(source)) as batches:
        assert len(batches.next().changes) == 6
        trigger_source.execute(
            "UPDATE t SET n = 'new' WHERE id <= 2; UPDATE t SET n = 'newer' WHERE id = 2; DELETE FROM t WHERE id = 3; "
            "DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'again'); UPDATE t SET id = 50 WHERE id = 5; "
            "INSERT INTO t VALUES (7, 'short'); DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (8, NULL); "
            "UPDATE t SET id = 60 WHERE id = 6; UPDATE t SET id = 6 WHERE id = 60; "
        )
        assert batches.next().told() == [
            ("delete", "t", ("3",)),
            ("delete", "t", ("4",)),
            ("delete", "t", ("5",)),
            ("delete", "t", ("6",)),
            ("insert", "t", ("4", "again")),
            ("insert", "t", ("50", "old")),
            ("insert", "t", ("6", "old")),
            ("insert", "t", ("8", None)),
            ("update", "t", ("1", "new")),
            ("update", "t", ("2", "newer")),
        ]


def test_a_source_where_nothing_changes_is_heard_of_at_once(source: TriggerSource) -> None:
    """Else the status of a stream would show the error that broke its last session until something changes."""
    at = place(source)
    with reading(source, at) as batches:
        assert batches.idle() == at.position


def test_what_is_before_a_truncate_is_void(source: TriggerSource, trigger_source: Database) -> None:
    trigger_source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    with reading(source, place(source)) as batches:
        batches.next()
        trigger_source.execute(
            "BEGIN; UPDATE t SET n = 'x'; DELETE FROM t WHERE id = 2; TRUNCATE t; INSERT INTO t VALUES (1, 'c'), (3, 'd'); "
            "UPDATE t SET n = 'e' WHERE id = 3; COMMIT"
        )
        batch = batches.next()
        assert batch.changes[0][0] is Kind.TRUNCATE
        assert batch.told() == [("insert", "t", ("1", "c")), ("insert", "t", ("3", "e")), ("truncate", "t", ())]


def test_keys_that_rows_hand_on_within_a_statement_leave_no_row_behind(trigger_source: Database) -> None:
    """A deferrable key may be another row's for a while: the first that is heard of it may be an insert, though it was there."""
    if trigger_source.server.version < DEFERRABLE:
        pytest.skip("no key is deferrable")
    dice = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    trigger_source.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n text)")
    _, source = captured(trigger_source)
    trigger_source.execute("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 9) i")
    rows: Rows = {}
    with reading(source, place(source)) as batches:
        apply(rows, batches.next().changes, {T: ["id"]})
        for swap in ("UPDATE t SET id = 10 - id", "UPDATE t SET id = id + 1", "UPDATE t SET id = id - 1", _TAKEN_OVER, _LEFT):
            for statement in (swap, dice.choice([_TAKEN_OVER, "UPDATE t SET id = 10 - id", "UPDATE t SET n = n || id"])):
                trigger_source.execute(f"BEGIN; {statement}; INSERT INTO t VALUES (100, 'new'); COMMIT")
                apply(rows, batches.next().changes, {T: ["id"]})
                trigger_source.execute("DELETE FROM t WHERE id = 100")
                apply(rows, batches.next().changes, {T: ["id"]})
        told = {(row["id"], row["n"]) for row in rows[T].values()}
        assert told == set(trigger_source.query("SELECT id::text, n FROM t"))


_TAKEN_OVER = (
    "INSERT INTO t SELECT id, n || '+' FROM t WHERE id % 2 = 0; "
    "DELETE FROM t USING t AS o WHERE t.id = o.id AND length(t.n) < length(o.n)"
)
_LEFT = "UPDATE t SET id = 5 WHERE id = 4; DELETE FROM t WHERE id = 5"


def test_keys_are_compared_as_their_types_do_and_told_as_the_server_writes_them(trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE numbers (k numeric PRIMARY KEY, n int)")
    trigger_source.execute("CREATE TABLE padded (k char(5), b bool, i inet, PRIMARY KEY (k, b, i))")
    trigger_source.execute("CREATE TABLE bytes (d timestamptz, k bytea, f float8, PRIMARY KEY (f, k, d))")
    _, source = captured(trigger_source)
    with reading(source, place(source)) as batches:
        trigger_source.execute("INSERT INTO numbers VALUES (2.50, 1)")
        trigger_source.execute("INSERT INTO padded VALUES ('ab', true, '10.0.0.1')")
        trigger_source.execute("INSERT INTO bytes VALUES ('2026-11-21 12:00:00.5+02', decode('00ff5c', 'hex'), 0.5)")
        first = batches.next()
        while len(first.changes) < 3:
            first.changes += batches.next().changes
        with trigger_source.connect() as connection:
            connection.execute("SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'")
            if trigger_source.server.version >= FULL_TEXT:
                connection.execute("SET bytea_output = 'escape'")
            connection.execute("SET extra_float_digits = -10")
            connection.execute(
                "BEGIN; DELETE FROM numbers; INSERT INTO numbers VALUES (2.5, 2); DELETE FROM padded; DELETE FROM bytes"
            )
            connection.execute("COMMIT")
        assert batches.next().told() == [
            ("delete", "bytes", ("2026-11-21 10:00:00.5+00", "\\x00ff5c", "0.5")),
            ("delete", "numbers", ("2.50",)),
            ("delete", "padded", ("ab   ", "t", "10.0.0.1")),
            ("insert", "numbers", ("2.5", "2")),
        ]


# -- places ------------------------------------------------------------------------------------------------------------------------


def test_edges_at_different_positions_are_each_told_what_they_lack(source: TriggerSource, trigger_source: Database) -> None:
    with reading(source, place(source)) as batches:
        trigger_source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'a'), (3, 'a')")
        first = batches.next()
        trigger_source.execute("UPDATE t SET n = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2")
        second = batches.next()
    trigger_source.execute("UPDATE t SET n = 'c' WHERE id = 3; INSERT INTO t VALUES (2, 'c')")
    behind, ahead = place(source, first.end), place(source, second.end)
    with reading(source, place(source, first.transaction.position), behind, ahead) as batches:
        whole, more, last = batches.next(), batches.next(), batches.next()
        assert [b.transaction.position for b in (whole, more, last)] == [first.transaction.position, first.end, second.end]
        assert whole.end == more.end == last.end > second.end
        assert whole.told() == [("insert", "t", ("1", "b")), ("insert", "t", ("2", "c")), ("insert", "t", ("3", "c"))]
        assert more.told() == [
            ("delete", "t", ("2",)),
            ("insert", "t", ("2", "c")),
            ("update", "t", ("1", "b")),
            ("update", "t", ("3", "c")),
        ]
        assert last.told() == [("insert", "t", ("2", "c")), ("update", "t", ("3", "c"))]
        trigger_source.execute("DELETE FROM t")
        assert batches.next().transaction.position == whole.end


def test_a_table_that_was_copied_later_is_told_from_its_copy_on(trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text); CREATE TABLE u (id bigint PRIMARY KEY)")
    _, source = captured(trigger_source)
    begin = place(source)
    trigger_source.execute("INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1)")
    with source.snapshot() as snapshot:
        copied = snapshot.position
        with snapshot.rows(T, ["id"]) as blocks:
            assert b"".join(blocks) == b"1\n"
    trigger_source.execute("INSERT INTO t VALUES (2, 'b'); INSERT INTO u VALUES (2)")
    with source.read_from([place(source, begin.position, {"t": copied})]) as reader:
        pieces = wait_for(lambda: [p for p in reader.read(0.1) if isinstance(p, Piece)], "the batch")
    told = [(p.since, c[1].table.name, c[3]) for p in pieces for c in p.changes]
    assert sorted(told, key=str) == sorted(
        [(copied, "t", ("2", "b")), (begin.position, "u", ("1",)), (begin.position, "u", ("2",))], key=str
    )


def test_an_old_source_of_many_tables_is_not_asked_for_all_their_columns_with_each_table(
    trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand tables took 40 s longer, in which nothing seemed to happen."""
    monkeypatch.setattr(trigger_snapshot, "EXPORT", 1_000_000)  # as before 9.2: one session reads
    monkeypatch.setattr(trigger_snapshot, "FULL_TEXT", 1_000_000)  # as before 9.0: columns are read in our way
    asked = []

    def counted(connection: Connection, selects: Callable[[TableName], bool]) -> list[SourceTable]:
        asked.append(1)
        return read_tables(connection, selects)

    monkeypatch.setattr(trigger_snapshot, "read_tables", counted)
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text); CREATE TABLE u (id bigint PRIMARY KEY)")
    trigger_source.execute("INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (2)")
    _, source = captured(trigger_source)
    with source.snapshot() as snapshot:
        for table, columns, rows in ((T, ["id", "n"], b"1\ta\n"), (TableName("public", "u"), ["id"], b"2\n")):
            with snapshot.rows(table, columns) as blocks:
                assert b"".join(blocks) == rows
    assert len(asked) == 1


def test_a_recorded_batch_that_nobody_got_does_no_harm(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
    with reading(source, place(source)) as batches, monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise ConnectError("broken off")

        patch.setattr(TriggerReader, "_hold", fail)
        with pytest.raises(ConnectError):
            batches.next()
    assert trigger_source.query("SELECT number FROM streamer.delta_reader") == [(2,)]
    with reading(source, place(source)) as batches:
        batch = batches.next()
        assert batch.told() == [("insert", "t", ("1", "a"))]
        assert batch.end == LSN(3 << 32)


def test_positions_move_past_batches_that_hold_nothing_for_us(source: TriggerSource) -> None:
    start = place(source)
    with source.snapshot() as snapshot:
        recorded_for_a_copy = snapshot.position
    assert source.state().current == recorded_for_a_copy
    with reading(source, start) as batches:
        assert batches.idle() == recorded_for_a_copy


def test_the_state_tells_of_changes_that_no_batch_holds_yet(source: TriggerSource, trigger_source: Database) -> None:
    before = source.state()
    assert before.current == before.confirmed
    trigger_source.execute("CREATE TABLE elsewhere (id int PRIMARY KEY)")
    trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
    current = source.state().current
    assert current > before.current
    with reading(source, place(source)) as batches:
        assert batches.next().end == current
    assert source.state().current == current


# -- waking ------------------------------------------------------------------------------------------------------------------------


def test_a_sleeping_reader_is_woken(source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_reader, "POLL_SECONDS", (0.01, 3600.0))
    with reading(source, place(source)) as batches:
        assert batches.next_if_any(0.5) is None
        for n in range(3):
            trigger_source.execute(f"INSERT INTO t VALUES ({n}, 'a')")
            assert len(batches.next().changes) == 1
            assert batches.next_if_any(0.5) is None


def test_a_reader_that_nobody_wakes_looks_for_itself(source: TriggerSource, trigger_source: Database) -> None:
    with reading(source, place(source)) as batches:
        assert batches.next_if_any(0.5) is None
        trigger_source.execute("SELECT setval('streamer.wakeup', 2)")  # as after a transaction that woke us and was undone
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        assert len(batches.next().changes) == 1


def test_a_busy_server_does_not_keep_the_reader_from_answering(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading(source, place(source)) as batches, trigger_source.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        trigger_source.execute("INSERT INTO streamer.delta (relation, kind, key) VALUES ('t'::regclass, 'u', '{1}')")
        assert batches.next_if_any(1.0) is None  # it waits for the lock, and has come back
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        assert trigger_source.query(blocked) == [(1,)]
        batches.reader.confirm(LSN(1 << 32))
    wait_for_equal(lambda: trigger_source.query(blocked), [(0,)], "the reader's statement to be broken off")


# -- confirming and purging --------------------------------------------------------------------------------------------------------


def test_deltas_are_purged_when_every_stream_has_them(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.0)
    with connect("a", trigger_source.url, application="test") as connection:
        recorded.create_reader(connection, "other")
        trigger_source.execute("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i")
        with reading(source, place(source)) as batches:
            batches.reader.confirm(batches.next().end)
            assert trigger_source.query(PENDING) == [(10,)]
            assert source.state().confirmed == LSN(2 << 32)
            assert trigger_source.query("SELECT number FROM streamer.delta_batch WHERE stream <> 'other'") == [(2,)]
            recorded.drop_reader(connection, "other")
            trigger_source.execute("INSERT INTO t VALUES (11, 'a')")
            batches.reader.confirm(batches.next().end)
        assert trigger_source.query(PENDING) == [(0,)]


def test_a_large_number_of_deltas_is_purged_in_portions(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (recorded, trigger_reader):
        monkeypatch.setattr(module, "PURGE_ROWS", 100)
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.0)
    trigger_source.execute("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 250) i")
    with reading(source, place(source)) as batches:
        end = batches.next().end
        for left in (150, 50, 0, 0):
            batches.reader.confirm(end)
            assert trigger_source.query(PENDING) == [(left,)]


def test_what_is_confirmed_last_is_noted_when_the_reader_leaves(source: TriggerSource, trigger_source: Database) -> None:
    with reading(source, place(source)) as batches:
        batches.reader.confirm(place(source).position)
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        end = batches.next().end
        batches.reader.confirm(end)
    assert source.state().confirmed == end


def test_an_edge_that_lies_before_what_was_confirmed_is_refused(source: TriggerSource, trigger_source: Database) -> None:
    start = place(source)
    with reading(source, start) as batches:
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        batches.reader.confirm(batches.next().end)
    with reading(source, start) as batches, pytest.raises(SlotError, match='batch 1 of stream "streamer_shop_a" on "a" is gone'):
        batches.next()


# -- what stands in the way --------------------------------------------------------------------------------------------------------


def test_only_one_reader_has_a_stream(source: TriggerSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.capture.trigger_source.HANDOVER_SECONDS", 0.2)
    with (
        reading(source, place(source)),
        pytest.raises(TakenError, match='"streamer_shop_a" on "a" is read by another'),
        source.read_from([place(source)]),
    ):
        pass


def test_a_stream_that_was_removed_is_missed(source: TriggerSource, trigger_source: Database) -> None:
    start = place(source)
    with reading(source, start) as batches:
        trigger_source.execute("DELETE FROM streamer.delta_reader")
        with pytest.raises(SlotError):
            batches.next()
    with pytest.raises(SlotError, match='there is no stream "streamer_shop_a" on "a"'):
        source.state()


def test_a_restored_dump_is_another_source(source: TriggerSource, trigger_source: Database) -> None:
    before = source.state().identity
    trigger_source.execute("UPDATE streamer.delta_identity SET relation = 1")
    assert source.state().identity != before


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_source_that_restarts_is_read_on(source: TriggerSource, trigger_source: Database, mode: str) -> None:
    start = place(source)
    with reading(source, start) as batches:
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        end = batches.next().end
        trigger_source.execute("INSERT INTO t VALUES (2, 'b')")
        trigger_source.server.restart("fast" if mode == "fast" else "immediate")
        with pytest.raises(ConnectError):
            batches.next()
    trigger_source.execute("INSERT INTO t VALUES (3, 'c')")
    with reading(source, place(source, end)) as batches:
        assert batches.next().told() == [("insert", "t", ("2", "b")), ("insert", "t", ("3", "c"))]
