"""Copies that are broken off at random moments while rows are written: only what is missing is copied again, nothing is lost."""

from __future__ import annotations

import random
import sqlite3
import threading
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import rows, wait_until_same
from tests.meanwhile import Work, meanwhile
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database
from tests.waiting import wait_for

ROWS = 40_000
RANGE_ROWS = 2_000
LARGE = "SELECT id, n, pad FROM large ORDER BY id"


def make_large(source: Database) -> None:
    source.execute("CREATE TABLE large (id bigint PRIMARY KEY, n bigint NOT NULL, pad text)")
    source.execute("INSERT INTO large SELECT i, 0, repeat(i::text, 40) FROM generate_series(1, %s) i", [ROWS])
    source.execute("VACUUM ANALYZE large")


def writing(source: Database, seed: int) -> Work:
    """Insert, update, delete and move rows of the large table, through restarts."""
    some = random.Random(seed)

    def one(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        key, other = some.randrange(1, ROWS), some.randrange(-ROWS, 2 * ROWS)
        kind = some.randrange(10)
        if kind < 5:
            connection.execute("UPDATE large SET n = n + 1 WHERE id BETWEEN %s AND %s", [key, key + 5])
        elif kind < 7:
            connection.execute("DELETE FROM large WHERE id = %s", [key])
        elif kind < 9:
            connection.execute("INSERT INTO large VALUES (%s, -1, 'new') ON CONFLICT (id) DO NOTHING", [other])
        else:
            moved = "UPDATE large SET id = %s WHERE id = %s AND NOT EXISTS (SELECT 1 FROM large WHERE id = %s)"
            connection.execute(moved, [other, key, other])

    def write(stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with source.connect() as connection:
                    while not stop.is_set():
                        one(connection)
            except psycopg.OperationalError:
                stop.wait(0.05)

    return write


class Target:
    """A target of the copy, and what it says of it."""

    def __init__(self, node: Database | MysqlDatabase | Path, url: str) -> None:
        self.node = node
        self.url = url
        self._own = "streamer." if isinstance(node, Database) else "streamer_"

    def records(self) -> set[tuple[object, ...]]:
        """The ranges that it has, if it answers."""
        try:
            return set(rows(self.node, f"SELECT bounds, position FROM {self._own}copied_part"))
        except (psycopg.OperationalError, sqlite3.OperationalError):
            return set()

    def has_ranges(self, number: int) -> bool:
        return len(self.records()) >= number

    def is_whole(self) -> bool:
        try:
            return rows(self.node, f"SELECT 1 FROM {self._own}copy WHERE table_name = 'large' AND position <> '0/0'") == [(1,)]
        except (psycopg.OperationalError, sqlite3.OperationalError):
            return False

    def has_ranges_or_all(self, number: int) -> bool:
        return self.has_ranges(number) or self.is_whole()


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    kind = request.param
    if kind == "sqlite":
        return Target(tmp_path / "shop.sqlite", f"sqlite:///{tmp_path / 'shop.sqlite'}")
    database = request.getfixturevalue({"postgresql": "target18", "mariadb": "mariadb"}[kind])
    return Target(database, database.url)


@pytest.mark.parametrize(
    ("target", "capture", "victims"),
    [
        ("postgresql", "auto", ["daemon", "source", "target"]),
        ("postgresql", "trigger", ["daemon", "source"]),
        ("mariadb", "auto", ["daemon"]),
        ("sqlite", "auto", ["daemon"]),
    ],
    ids=["postgresql", "captured by triggers", "mariadb", "sqlite"],
    indirect=["target"],
)
def test_a_copy_that_is_broken_off_goes_on_where_it_was(
    tmp_path: Path, source15: Database, target: Target, capture: str, victims: list[str]
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    some = random.Random(seed)
    make_large(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target.url}, capture=capture) as streamer:
        streamer.write_config(copy_range_rows=RANGE_ROWS)
        streamer.setup()
        with meanwhile(writing(source15, seed)):
            streamer.start()
            kept: set[tuple[object, ...]] = set()
            for victim in some.sample(victims, len(victims)):
                wanted = len(kept) + some.randrange(1, 5)
                wait_for(partial(target.has_ranges_or_all, wanted), f"{wanted} ranges")
                if target.is_whole():
                    break  # the copy was faster than we are
                if victim == "daemon":
                    streamer.kill()
                    streamer.start()
                else:
                    node = source15 if victim == "source" else target.node
                    assert isinstance(node, Database)
                    node.server.restart("immediate")
                assert kept <= target.records()
                kept = target.records()
            wait_for(target.is_whole, "the copy to be whole")
            assert kept <= target.records()
            assert len({position for _, position in target.records()}) > 1
        wait_until_same(source15, target.node, LARGE, 60)
        assert streamer.edges()["a->b"]["consistent_from"] == ""
        streamer.stop()
        assert streamer.log.count("copy_resumed") >= 1
        assert "copy_restarted" not in streamer.log
        streamer.start_streaming()
        assert target.records() == set()
        source15.execute("UPDATE large SET n = 7 WHERE id % 100 = 1")
        wait_until_same(source15, target.node, LARGE)
