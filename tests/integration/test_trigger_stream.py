"""Streams whose source captures by triggers, from end to end between real databases: copies, restarts, and faults at every step."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from streamer.admin.setup import setup
from streamer.capture import trigger_reader
from streamer.capture.batches import Batches
from streamer.capture.catalog import GENERATED
from streamer.capture.trigger_changes import Pieces
from streamer.config import Config
from streamer.errors import ConnectError, StreamerError
from streamer.retry import Backoff
from streamer.sinks.postgres import PostgresSink
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.integration.streams import running
from tests.meanwhile import meanwhile
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT id, n FROM t ORDER BY id"
HISTORY = "SELECT id, n FROM history ORDER BY id"


def make_table(*nodes: Database) -> None:
    for node in nodes:
        node.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")


def by_trigger(*nodes: Database) -> Config:
    """A config from the first node to the others."""
    names = "abcdef"
    return make_config({name: node.url for name, node in zip(names, nodes, strict=False)}, capture="trigger")


def rows_of_file(file: Path, query: str) -> list[Row]:
    with closing(sqlite3.connect(file, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def test_inserts_updates_deletes_new_keys_and_truncates_arrive(trigger_pair: Pair) -> None:
    source, target = trigger_pair
    make_table(source, target)
    source.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
    with running(by_trigger(source, target)):
        assert target.query(ALL) == source.query(ALL)
        for statement in (
            "INSERT INTO t VALUES (11, 1), (12, 2)",
            "UPDATE t SET n = n + 1 WHERE id < 5",
            "UPDATE t SET id = id + 100 WHERE id > 10",
            "DELETE FROM t WHERE id = 3",
            "BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 44); COMMIT",
            "BEGIN; UPDATE t SET n = 7; TRUNCATE t; INSERT INTO t VALUES (1, 1), (2, 2); UPDATE t SET n = 3 WHERE id = 2; COMMIT",
            "INSERT INTO t VALUES (5, 5)",
        ):
            source.execute(statement)
            wait_for_equal(lambda: target.query(ALL), source.query(ALL), statement)


def test_long_values_and_values_of_every_shape_arrive(trigger_source: Database, target18: Database) -> None:
    made = "GENERATED ALWAYS AS (n * 2) STORED" if trigger_source.server.version >= GENERATED else ""
    for node in (trigger_source, target18):
        node.execute(f"CREATE TABLE t (id bigint PRIMARY KEY, n bigint, doc text, twice bigint {made})")
    trigger_source.execute("ALTER TABLE t ALTER COLUMN doc SET STORAGE EXTERNAL")
    query = "SELECT id, n, twice, md5(doc), length(doc) FROM t ORDER BY id"
    with running(by_trigger(trigger_source, target18)):
        trigger_source.execute(
            "INSERT INTO t VALUES (1, 1, repeat('a long text é', 80000)), (2, 2, E'tab\\t nl\\n back\\\\ \\\\N'), (3, NULL, NULL)"
        )
        wait_for_equal(lambda: target18.query(query), trigger_source.query(query), "the rows")
        trigger_source.execute("UPDATE t SET n = 7")
        wait_for_equal(lambda: target18.query(query), trigger_source.query(query), "the update")


def test_a_value_that_is_unique_moves_between_rows(trigger_source: Database, target18: Database) -> None:
    for node in (trigger_source, target18):
        node.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint UNIQUE, x text)")
    query = "SELECT * FROM t ORDER BY id"
    with running(by_trigger(trigger_source, target18)):
        trigger_source.execute("INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 5) i")
        wait_for_equal(lambda: target18.query(query), trigger_source.query(query), "the rows")
        trigger_source.execute(
            "BEGIN; UPDATE t SET n = -1 WHERE id = 1; UPDATE t SET n = 1 WHERE id = 2; UPDATE t SET n = 2 WHERE id = 1; "
            "DELETE FROM t WHERE id = 3; UPDATE t SET n = 3 WHERE id = 4; INSERT INTO t VALUES (6, 4, 'y'); COMMIT"
        )
        wait_for_equal(lambda: target18.query(query), trigger_source.query(query), "the rows")


@contextmanager
def writing(source: Database, seed: int) -> Iterator[None]:
    """Insert, update, delete and note the history while the context lasts; every other transaction commits after a later one."""
    dice = random.Random(seed)

    def write(stop: threading.Event) -> None:
        while not stop.is_set():
            with source.connect() as one, source.connect() as other:
                for connection in (one, other):
                    connection.execute("BEGIN")
                    row = dice.randrange(1, 50)
                    step = dice.randrange(4)
                    if step == 0:
                        connection.execute("DELETE FROM t WHERE id = %s", [row if connection is one else row + 100])
                    else:
                        connection.execute(
                            "INSERT INTO t SELECT %(id)s, 0 WHERE NOT EXISTS (SELECT 1 FROM t WHERE id = %(id)s)",
                            {"id": row if connection is one else row + 100},
                        )
                        connection.execute(
                            "UPDATE t SET n = n + 1 WHERE mod(id, 7) = %s AND (id < 100) = %s", [step, connection is one]
                        )
                    connection.execute("INSERT INTO history (n) VALUES (%s)", [row])
                other.execute("COMMIT")
                one.execute("COMMIT")

    with meanwhile(write):
        yield


def test_what_is_written_during_the_copy_is_neither_lost_nor_doubled(
    trigger_source: Database, target18: Database, tmp_path: Path
) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
    trigger_source.execute("CREATE TABLE history (id bigserial PRIMARY KEY, n bigint)")
    trigger_source.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1000, 50000) i")
    file = tmp_path / "shop.sqlite"
    config = make_config({"a": trigger_source.url, "b": target18.url, "s": f"sqlite:///{file}"}, capture="trigger")
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    setup(config, None, print)  # its locks would wait for a transaction of ours, and the other one for them
    with writing(trigger_source, seed), running(config, wait=False, set_up=False) as streams:
        streams.wait_until_streaming()
        applied = streams.applied
        wait_for(lambda: all(n > applied[edge] for edge, n in streams.applied.items()), "changes after the copy")
    with running(config):
        for query in (ALL, HISTORY):
            wait_for_equal(partial(target18.query, query), trigger_source.query(query), "PostgreSQL to catch up")
            wait_for_equal(partial(rows_of_file, file, query), trigger_source.query(query), "SQLite to catch up")


def test_a_table_that_joins_later_is_copied_and_goes_on_from_there(trigger_source: Database, target18: Database) -> None:
    make_table(trigger_source)
    trigger_source.execute("CREATE TABLE history (id bigserial PRIMARY KEY, n bigint)")
    config = by_trigger(trigger_source, target18)
    with running(config):
        trigger_source.execute("INSERT INTO t VALUES (1, 1)")
        wait_for_equal(lambda: target18.query(ALL), [(1, 1)], "the row")
    trigger_source.execute("CREATE TABLE late (id bigint PRIMARY KEY, n bigint); INSERT INTO late VALUES (1, 1)")
    query = "SELECT id, n FROM late ORDER BY id"
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    setup(config, None, print)
    with writing(trigger_source, seed), running(config, set_up=False):
        trigger_source.execute("INSERT INTO late VALUES (2, 2); UPDATE late SET n = 3 WHERE id = 1")
        wait_for_equal(lambda: target18.query(query), trigger_source.query(query), "the table that joined")
    with running(config):
        for other in (ALL, HISTORY):
            wait_for_equal(partial(target18.query, other), trigger_source.query(other), "the others")


# -- faults ------------------------------------------------------------------------------------------------------------------------


class Faults:
    """Makes methods fail before or after they have done their work, now and then, until told to stop."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self._patch = patch
        self._dice = random.Random(seed)
        self.stopped = False
        self.done: dict[str, int] = {}

    def of(self, owner: type, method: str, error: Callable[[], Exception], rate: float = 0.1) -> None:
        """Have this method fail as often as this."""
        original = getattr(owner, method)
        name = f"{owner.__name__}.{method}"
        self.done |= {f"before {name}": 0, f"after {name}": 0}

        def failing(*arguments: object) -> object:
            self._meet(f"before {name}", error, rate)
            result: object = original(*arguments)
            self._meet(f"after {name}", error, rate)
            return result

        self._patch.setattr(owner, method, failing)

    def _meet(self, step: str, error: Callable[[], Exception], rate: float) -> None:
        if not self.stopped and self._dice.random() < rate:
            self.done[step] += 1
            raise error()

    @property
    def everywhere(self) -> bool:
        """Whether each of them has failed."""
        return all(self.done.values())


def broken() -> StreamerError:
    return ConnectError("broken on purpose")


def test_faults_between_any_two_steps_lose_and_double_nothing(
    databases: Databases, trigger_server: PostgresServer, pg18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    source, *targets = (
        databases.create(server, name) for server, name in ((trigger_server, "source"), (pg18, "one"), (pg18, "two"))
    )
    make_table(source, *targets)
    source.execute("CREATE TABLE history (id bigserial PRIMARY KEY, n bigint)")
    for target in targets:
        target.execute("CREATE TABLE history (id bigint, n bigint)")  # without its key it would keep a doubled row
    monkeypatch.setattr(Backoff, "LAST", 0.2)
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.02)
    faults = Faults(monkeypatch, seed)
    faults.of(Batches, "record", broken)
    faults.of(Pieces, "last", broken)
    faults.of(PostgresSink, "write", broken)
    faults.of(Batches, "confirm", broken)
    with running(by_trigger(source, *targets), wait=False) as streams:
        with writing(source, seed):
            wait_for(lambda: faults.everywhere, "every step to have failed", deadline=60)
        faults.stopped = True
        for target in targets:
            for query in (ALL, HISTORY):
                wait_for_equal(partial(target.query, query), source.query(query), f"{target}: {query}")
        wait_for(lambda: not streams.problems, "the streams to be content")
