"""Rows of a table of SQLite as one side of a comparison.

The trap: a connection of sqlite3 belongs to the thread that has made it, unless it is told not to look; here one thread at a time
uses it. A reader that has begun keeps a writer from shortening the log of a file in WAL mode, but not from writing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from streamer.errors import TargetError
from streamer.sinks.sqlite_ddl import quote
from streamer.verify.mysql_rows import condition
from streamer.verify.parts import Part

BUSY_SECONDS = 60.0


def open_file(node: str, path: Path) -> sqlite3.Connection:
    """Return a connection that only reads. Raises TargetError."""
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        remedy = "check the file, its owner and mode" if path.exists() else "run: streamer setup"
        raise TargetError(f'node "{node}": SQLite file "{path}": {error}', remedy) from error


class SqliteScan:
    """Implements streamed_rows.Scan; `ranged` is the column that ranges are cut by."""

    def __init__(self, node: str, connection: sqlite3.Connection, table: str, columns: Sequence[str], ranged: str) -> None:
        self._node = node
        self._connection = connection
        self._table = table
        self._query = f"SELECT {', '.join(map(quote, columns))} FROM {quote(table)}"
        self._ranged = quote(ranged)

    def rows(self, part: Part) -> Iterator[tuple[str, Sequence[Any]]]:
        """Give the rows of a range."""
        try:
            with closing(self._connection.execute(self._query + condition(part, self._ranged))) as cursor:
                for row in cursor:
                    yield "", row
        except sqlite3.Error as error:
            raise TargetError(f'node "{self._node}": SQLite table "{self._table}": {error}', "check the file") from error

    def cancel(self) -> None:
        """Break off what the connection reads."""
        self._connection.interrupt()
