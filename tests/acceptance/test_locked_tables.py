"""A table of the source that somebody has locked, as VACUUM FULL, CLUSTER and most forms of ALTER TABLE do while they last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import wait_until_same
from tests.conftest import Pair
from tests.servers import Database


@contextmanager
def locked(database: Database, table: str) -> Iterator[None]:
    """Hold the strongest lock on a table."""
    with database.connect() as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


def test_the_other_tables_do_not_wait_for_a_table_that_is_locked_on_the_source(tmp_path: Path, pair: Pair) -> None:
    """The stream asked the server for what it waits with until the lock is free: defaults of columns, columns of publications."""
    source, target = pair
    source.execute("CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 7); CREATE TABLE u (LIKE t INCLUDING ALL)")
    with Streamer(tmp_path, {"a": source.url, "b": target.url}).setup().start_streaming() as streamer:
        streamer.stop()
        with locked(source, "t"):
            streamer.start()
            source.execute("INSERT INTO u VALUES (1)")
            wait_until_same(source, target, "SELECT * FROM u")
