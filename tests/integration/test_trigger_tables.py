"""A reader whose tables are altered, emptied, dropped, have partitions, are many, or belong to others."""

from __future__ import annotations

import threading

import pytest

from streamer.admin.setup import setup
from streamer.capture import trigger_reader
from streamer.capture.nonblocking import Statements
from streamer.capture.trigger_reader import TriggerReader
from streamer.capture.trigger_source import TriggerSource
from streamer.errors import SourceError
from streamer.model import LSN, Kind, Piece
from tests.integration.delta_readers import captured, place, reading, source_of
from tests.meanwhile import meanwhile
from tests.servers import Database
from tests.waiting import wait_for


@pytest.fixture
def source(trigger_source: Database) -> TriggerSource:
    """A source of one table."""
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    return captured(trigger_source)[1]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ALTER COLUMN n TYPE varchar(40) USING n || '!'",
        "TRUNCATE t",
        "ALTER TABLE t ADD COLUMN x int DEFAULT 7",
        "VACUUM FULL t",
    ],
)
def test_a_table_that_is_rewritten_after_the_snapshot_does_not_look_empty(
    source: TriggerSource, trigger_source: Database, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger_source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    hold = TriggerReader._hold
    pending = [statement]

    def alter_and_hold(reader: TriggerReader, touched: object) -> object:
        if pending:
            trigger_source.execute(pending.pop())
        return hold(reader, touched)  # type: ignore[arg-type]

    with reading(source, place(source)) as batches:
        batches.next()
        monkeypatch.setattr(TriggerReader, "_hold", alter_and_hold)
        trigger_source.execute("UPDATE t SET n = 'c' WHERE id = 1")
        told = batches.next()
        if "TRUNCATE" in statement:
            assert [c[0] for c in told.changes] == [Kind.TRUNCATE]
        else:
            ((kind, relation, _, new),) = told.changes
            assert kind is Kind.UPDATE
            (row,) = trigger_source.query("SELECT * FROM t WHERE id = 1")
            assert dict(zip(relation.names, new or (), strict=True)) == dict(zip(relation.names, map(str, row), strict=True))


def test_a_truncate_that_waits_for_a_batch_is_not_waited_for_by_the_reader(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid a batch the reader looked whether all is captured. A default is only told to who may lock the table, so reader and
    application stood still, for ever: the server saw no deadlock."""
    monkeypatch.setattr(trigger_reader, "LOOK_SECONDS", 0)
    trigger_source.execute("ALTER TABLE t ALTER n SET DEFAULT upper('none')")
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"

    def truncate(_: threading.Event) -> None:
        with trigger_source.connect() as connection:
            connection.execute("SET statement_timeout = '60s'")  # it ends only if the reader stands still
            connection.execute("TRUNCATE t")

    with reading(source, place(source)) as batches:
        trigger_source.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i")
        wait_for(lambda: [item for item in batches.reader.read(0.1) if isinstance(item, Piece)], "the first part of the batch")
        with meanwhile(truncate):
            wait_for(lambda: trigger_source.query(waiting), "the truncate to wait for the batch")
            batches.reader.confirm(LSN(0))
            assert len(batches.next().changes) > 0
            assert [c[0] for c in batches.next().changes] == [Kind.TRUNCATE]


def test_columns_that_come_and_go_are_told(source: TriggerSource, trigger_source: Database) -> None:
    with reading(source, place(source)) as batches:
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        assert batches.next().changes[0][1].names == ("id", "n")
        trigger_source.execute("ALTER TABLE t ADD COLUMN m int; UPDATE t SET m = 5")
        batch = batches.next()
        assert (batch.changes[0][1].names, batch.changes[0][3]) == (("id", "n", "m"), ("1", "a", "5"))
        trigger_source.execute("ALTER TABLE t DROP COLUMN n; UPDATE t SET m = 6")
        batch = batches.next()
        assert (batch.changes[0][1].names, batch.changes[0][3]) == (("id", "m"), ("1", "6"))


def test_a_table_without_triggers_stops_the_stream(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_reader, "LOOK_SECONDS", 0.0)
    with reading(source, place(source)) as batches:
        batches.reader.confirm(LSN(1 << 32))
        trigger_source.execute("ALTER TABLE t DISABLE TRIGGER zzz_streamer_update")
        with pytest.raises(SourceError, match=r'the triggers of table "public\.t" on "a" are gone or disabled'):
            batches.reader.confirm(LSN(1 << 32))


def test_a_table_that_is_made_anew_without_triggers_stops_the_stream_until_setup_has_run(trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    config, source = captured(trigger_source)
    start = place(source)
    with reading(source, start):
        trigger_source.execute("DROP TABLE t; CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    for _ in range(2):  # it does not forget when it begins again
        with pytest.raises(SourceError, match=r'the triggers of table "public\.t" on "a" are gone'), reading(source, start):
            pass
    setup(config, None, lambda line: None)
    with reading(source, start) as batches:
        trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
        assert batches.next().told() == [("insert", "t", ("1", "a"))]


def test_a_dropped_table_is_passed_over(source: TriggerSource, trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    config, source = captured(trigger_source)
    with reading(source, place(source)) as batches:
        trigger_source.execute("BEGIN; INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1); DROP TABLE u; COMMIT")
        assert batches.next().told() == [("insert", "t", ("1", "a"))]
    assert source_of(config).state().current


def test_rows_of_partitions_are_told_as_rows_of_the_table(source15: Database) -> None:
    source15.execute("CREATE TABLE p (id int, part text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)")
    source15.execute("CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a'); CREATE TABLE p_b PARTITION OF p FOR VALUES IN ('b')")
    _, source = captured(source15)
    with reading(source, place(source)) as batches:
        source15.execute("INSERT INTO p VALUES (1, 'a'), (2, 'b')")
        assert batches.next().told() == [("insert", "p", ("1", "a")), ("insert", "p", ("2", "b"))]
        source15.execute("UPDATE p SET part = 'b' WHERE id = 1; CREATE TABLE p_c PARTITION OF p FOR VALUES IN ('c')")
        assert batches.next().told() == [("delete", "p", ("1", "a")), ("insert", "p", ("1", "b"))]
        source15.execute("INSERT INTO p VALUES (3, 'c')")
        assert batches.next().told() == [("insert", "p", ("3", "c"))]
        source15.execute("BEGIN; TRUNCATE p; INSERT INTO p VALUES (4, 'c'); COMMIT")
        assert batches.next().told() == [("insert", "p", ("4", "c")), ("truncate", "p", ())]


@pytest.mark.parametrize("leaves", ["DETACH PARTITION p_a", "DETACH PARTITION p_a; DROP TABLE p_a"])
def test_rows_deleted_from_a_partition_that_leaves_at_once_are_told(source15: Database, leaves: str) -> None:
    """They stayed on all targets: nobody knew any more whose they were."""
    source15.execute("CREATE TABLE p (id int, part text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)")
    source15.execute("CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a'); CREATE TABLE p_b PARTITION OF p FOR VALUES IN ('b')")
    _, source = captured(source15)
    with reading(source, place(source)) as batches:
        source15.execute("INSERT INTO p VALUES (1, 'a'), (2, 'a'), (3, 'b')")
        batches.next()
        source15.execute(f"BEGIN; DELETE FROM p WHERE part = 'a'; ALTER TABLE p {leaves}; INSERT INTO p VALUES (4, 'b'); COMMIT")
        told = [("delete", "p", ("1", "a")), ("delete", "p", ("2", "a")), ("insert", "p", ("4", "b"))]
        assert batches.next().told() == told


def test_of_many_tables_only_those_with_deltas_are_asked(trigger_source: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger_source.execute("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY);" for n in range(200)))
    _, source = captured(trigger_source)
    statements: list[str] = []
    for name in ("run", "copy"):
        method = getattr(Statements, name)

        def noted(self: Statements, text: str, *arguments: int, method: object = method) -> object:
            statements.append(text)
            return method(self, text, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(Statements, name, noted)
    with reading(source, place(source)) as batches:
        trigger_source.execute("BEGIN; INSERT INTO t7 VALUES (1); INSERT INTO t8 SELECT generate_series(1, 5000); COMMIT")
        batch = batches.next()
        assert len(batch.changes) == 5001
        assert sum("COPY" in text for text in statements) == 2
        assert len([text for text in statements if "streamer.wakeup" not in text]) < 10


def test_a_stream_leaves_the_deltas_of_others_alone(
    source: TriggerSource, trigger_source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_reader, "IDLE_SECONDS", 0.5)
    trigger_source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    start = place(source)
    trigger_source.execute("INSERT INTO streamer.delta (relation, kind, key) VALUES ('u'::regclass, 'i', '{1}')")
    assert source.state().current == start.position
    with reading(source, start) as batches:
        assert batches.next().changes == []  # a relation that it had not heard of
        trigger_source.execute("INSERT INTO streamer.delta (relation, kind, key) VALUES ('u'::regclass, 'i', '{2}')")
        assert batches.next().changes == []  # so that they can be purged
