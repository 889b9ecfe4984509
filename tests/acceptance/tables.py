"""What the acceptance tests look at: whole tables of PostgreSQL, MariaDB and SQLite, as equal values if they hold the same."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.mysql_servers import MysqlDatabase
from tests.servers import Database, Row
from tests.waiting import wait_for_equal


def rows(node: Database | MysqlDatabase | Path, query: str) -> list[Row]:
    """The rows of a query that all of them understand."""
    if not isinstance(node, Path):
        return node.query(query)
    with closing(sqlite3.connect(node, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def wait_until_same(source: Database, target: Database | MysqlDatabase | Path, query: str, deadline: float = 30) -> None:
    """Wait until the query gives on the target what it gives on the source, where nothing changes any more."""
    wait_for_equal(lambda: rows(target, query), rows(source, query), f"{target} to hold what {source} does: {query}", deadline)
