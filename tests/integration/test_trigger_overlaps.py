"""Transactions that overlap, begin at once, are undone in part, or prepared: none is lost, none comes too early."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest

from streamer.capture.trigger_source import TriggerSource
from tests.binaries import server_b_bin_dir
from tests.conftest import Databases
from tests.integration.delta_readers import Batches, captured, place, reading
from tests.servers import Database, PostgresServer


@pytest.fixture
def source(trigger_source: Database) -> TriggerSource:
    """A source of one table."""
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    return captured(trigger_source)[1]


def test_a_transaction_that_commits_after_later_ones_is_not_lost(source: TriggerSource, trigger_source: Database) -> None:
    """A reader that goes by the greatest id, or by times, passes over it."""
    with reading(source, place(source)) as batches, trigger_source.connect() as early:
        early.execute("BEGIN; INSERT INTO t VALUES (1, 'early')")
        for n in range(2, 5):
            trigger_source.execute(f"INSERT INTO t VALUES ({n}, 'late')")
            assert batches.next().told() == [("insert", "t", (str(n), "late"))]
        early.execute("UPDATE t SET n = 'earlier' WHERE id = 1; COMMIT")
        assert batches.next().told() == [("insert", "t", ("1", "earlier"))]
        assert batches.next_if_any(0.5) is None


def test_savepoints_that_are_undone_leave_nothing(source: TriggerSource, trigger_source: Database) -> None:
    with reading(source, place(source)) as batches:
        trigger_source.execute(
            "BEGIN; INSERT INTO t VALUES (1, 'a'); SAVEPOINT s; INSERT INTO t VALUES (2, 'b'); ROLLBACK TO s; SAVEPOINT s; "
            "INSERT INTO t VALUES (3, 'c'); COMMIT"
        )
        assert batches.next().told() == [("insert", "t", ("1", "a")), ("insert", "t", ("3", "c"))]


@pytest.fixture(scope="module")
def standing_server() -> Iterator[PostgresServer]:
    """A server whose clock stands still, so that all transactions begin in the same microsecond; it prepares transactions."""
    binaries = server_b_bin_dir()
    assert binaries is not None
    server = PostgresServer(binaries, {"max_prepared_transactions": "5"}, clock="2030-01-01 12:00:00")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def standstill(standing_server: PostgresServer, databases: Databases) -> Database:
    return databases.create(standing_server, "source")


def test_transactions_that_begin_in_the_same_microsecond_are_told_apart(standstill: Database) -> None:
    standstill.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    _, source = captured(standstill)
    with reading(source, place(source)) as batches, standstill.connect() as one, standstill.connect() as other:
        began = [c.execute("BEGIN; SELECT now(), clock_timestamp()").nextset() or c for c in (one, other)]
        assert len(began) == 2
        one.execute("INSERT INTO t VALUES (1, 'one')")
        other.execute("INSERT INTO t VALUES (2, 'other')")
        other.execute("COMMIT")
        assert batches.next().told() == [("insert", "t", ("2", "other"))]
        one.execute("COMMIT")
        assert batches.next().told() == [("insert", "t", ("1", "one"))]
        assert standstill.query("SELECT count(DISTINCT time), max(time) - min(time) FROM streamer.delta") == [(1, timedelta(0))]


def test_a_prepared_transaction_is_told_when_it_is_committed(standstill: Database) -> None:
    """NOTIFY would keep it from being prepared, so no trigger says it."""
    standstill.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    _, source = captured(standstill)
    with reading(source, place(source)) as batches:
        for n, end in ((1, "COMMIT"), (2, "ROLLBACK"), (3, "COMMIT")):
            assert batches.next_if_any(0.3) is None  # it sleeps
            truncate = "TRUNCATE t; " if n == 3 else ""
            standstill.execute(f"BEGIN; {truncate}INSERT INTO t VALUES ({n}, 'prepared'); PREPARE TRANSACTION 'p'")
            standstill.execute(f"INSERT INTO t VALUES (1{n}, 'another')" if n < 3 else "SELECT 1")
            told = batches.next_if_any(5.0 if n < 3 else 0.3)
            assert (told and told.told()) == ([("insert", "t", (f"1{n}", "another"))] if n < 3 else None)
            standstill.execute(f"{end} PREPARED 'p'")
            told = batches.next_if_any(0.3 if end == "ROLLBACK" else 5.0)
            assert (told is None) == (end == "ROLLBACK")
            assert told is None or told.told()[0] == ("insert", "t", (str(n), "prepared"))


class NaiveReader:
    """Reads deltas as many do: it remembers the greatest id, or the greatest time at which a transaction began."""

    def __init__(self, database: Database, column: str) -> None:
        self._database = database
        self._column = column
        self._last: object = None
        self.keys: set[str] = set()

    def read(self) -> None:
        later = f"WHERE {self._column} > %s" if self._last is not None else ""
        query = f"SELECT key[1], {self._column} FROM noted {later} ORDER BY 2"
        for key, last in self._database.query(query, [self._last] if later else None):
            self.keys.add(key)
            self._last = last


def test_long_and_short_transactions_at_once_are_read_whole_where_naive_readers_lose_some(standstill: Database) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    standstill.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    standstill.execute("CREATE TABLE noted (id bigserial, began timestamptz DEFAULT now(), key text[])")
    standstill.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO noted (key) VALUES (ARRAY[NEW.id::text]); RETURN NEW; END'"
    )
    _, source = captured(standstill)
    standstill.execute("CREATE TRIGGER note AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note()")
    by_id, by_time = NaiveReader(standstill, "id"), NaiveReader(standstill, "began")
    told: list[str] = []
    with reading(source, place(source)) as batches, ExitStack() as stack:
        sessions = [stack.enter_context(standstill.connect()) for _ in range(6)]
        open_ones: set[int] = set()
        for number in range(1, 121):
            chosen = dice.randrange(len(sessions))
            session = sessions[chosen]
            if chosen not in open_ones:
                session.execute("BEGIN")
                open_ones.add(chosen)
            session.execute("INSERT INTO t VALUES (%s, 'x')", [number])
            if chosen and dice.random() < 0.6:  # the first one is long
                session.execute("COMMIT")
                open_ones.discard(chosen)
            if number % 10 == 0:
                told += keys_of(batches)
                by_id.read()
                by_time.read()
        for chosen in open_ones:
            sessions[chosen].execute("COMMIT")
        told += keys_of(batches)
        by_id.read()
        by_time.read()
    everything = {str(number) for number in range(1, 121)}
    assert sorted(told, key=int) == sorted(everything, key=int), f"seed {seed}"
    assert by_id.keys < everything
    assert by_time.keys < everything


def keys_of(batches: Batches) -> list[str]:
    """The keys of all rows that are committed and have not been told."""
    keys: list[str] = []
    while (batch := batches.next_if_any(0.5)) is not None:
        keys += [str(row[0]) for kind, _, row in batch.told() if kind == "insert"]
    return keys
