"""What the acceptance tests look at: whole tables of PostgreSQL, MariaDB and SQLite, as equal values if they hold the same."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from streamer.model import LSN
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database, Row
from tests.waiting import DEADLINE, wait_for_equal


def rows(node: Database | MysqlDatabase | Path, query: str) -> list[Row]:
    """The rows of a query that all of them understand."""
    if not isinstance(node, Path):
        return node.query(query)
    with closing(sqlite3.connect(node, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def wait_until_same(source: Database, target: Database | MysqlDatabase | Path, query: str, deadline: float = DEADLINE) -> None:
    """Wait until the query gives on the target what it gives on the source, where nothing changes any more."""
    wait_for_equal(lambda: rows(target, query), rows(source, query), f"{target} to hold what {source} does: {query}", deadline)


def make_counters(database: Database, number: int = 10) -> None:
    """Make a small table of our own, with rows."""
    database.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, %s) i", [number])


def confirmed(source: Database) -> LSN:
    """What the source has been told that it may forget: its slot's position, or the number of a batch."""
    if found := source.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'streamer_shop_a'"):
        return LSN.parse(found[0][0])
    return LSN(source.query("SELECT confirmed << 32 FROM streamer.delta_reader")[0][0])


def progress(target: Database) -> LSN:
    (found,) = target.query("SELECT position FROM streamer.progress")
    return LSN.parse(found[0])
