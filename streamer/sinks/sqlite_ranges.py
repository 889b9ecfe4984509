"""What an SQLite file is asked for tables that are copied in ranges."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from streamer.model import LSN, EdgeName, TableName
from streamer.sinks.sqlite_ddl import fold_case, quote, read_target, target_name
from streamer.sinks.sqlite_file import DatabaseFile


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold a transaction that may write; it is committed in the end, unless an error ends it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


class SqliteEngine:
    """Implements ranges.Engine; `record` writes a table's own record on a connection."""

    def __init__(
        self, edge: EdgeName, file: DatabaseFile, record: Callable[[sqlite3.Connection, TableName, LSN, int | None], None]
    ) -> None:
        self._node = edge.target
        self._file = file
        self._record = record

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction; there is one at a time in a file."""
        with self._file.errors(), closing(self._file.connect()) as connection, transaction(connection):
            yield connection

    def execute(self, connection: sqlite3.Connection, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement; return the rows of a query."""
        return connection.execute(statement, parameters).fetchall()

    def place(self, table: TableName) -> str:
        """The table's name in SQL."""
        return quote(target_name(table))

    def column(self, connection: sqlite3.Connection, table: TableName, column: str) -> str | None:
        """The column's name in SQL, if it belongs to a key."""
        target = read_target(connection, self._node, table)
        return quote(column) if any(fold_case(column) in key for key in target.keys) else None

    def uniques(self, connection: sqlite3.Connection, table: TableName) -> int:
        """How many unique indexes there are; the rowid needs none."""
        name = self.place(table)
        indexes = [row for row in connection.execute(f"PRAGMA index_list({name})") if row[2]]
        keyed = any(row[5] for row in connection.execute(f"PRAGMA table_info({name})"))
        return len(indexes) + (keyed and not any(row[3] == "pk" for row in indexes))

    def record(self, connection: sqlite3.Connection, table: TableName, position: LSN, rows: int | None) -> None:
        """Write the table's own record."""
        self._record(connection, table, position, rows)
