"""The initial copy's snapshot where triggers capture: a batch is recorded, and its snapshot held.

From version 9.2 on other sessions can see it too; before, there is one session, and tables are read one after the other.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Final

from psycopg import sql

from streamer.capture.batches import Batches, position_of
from streamer.capture.catalog import FULL_TEXT, read_as, read_tables
from streamer.capture.snapshot import ExportedSnapshot
from streamer.model import LSN, ColumnDefinition, TableName
from streamer.session import Connection, version

EXPORT: Final = 90200


class SharedSnapshot(ExportedSnapshot):
    """The snapshot of one session, which is used by one thread at a time."""

    def __init__(self, node: str, connection: Connection, position: LSN, time: datetime) -> None:
        super().__init__(node, "", "", position, time)
        self._connection = connection
        self._free = threading.RLock()
        #: columns by table and name; read once, for to read one table's takes as long as all
        self._columns: Mapping[TableName, Mapping[str, ColumnDefinition]] = {}

    @contextmanager
    def _imported(self) -> Iterator[Connection]:
        with self._free:
            yield self._connection

    def _qualify(self, connection: Connection) -> None:
        """The transaction is that of other tables too, whose conditions may need the path."""

    def _leave(self, connection: Connection) -> None:
        """The snapshot lasts as long as its transaction."""

    def _values(self, connection: Connection, table: TableName, columns: Sequence[str]) -> sql.Composable:
        if version(connection) >= FULL_TEXT:
            return super()._values(connection, table, columns)
        if not self._columns:
            found = (one.definition for one in read_tables(connection, lambda name: True))
            self._columns = {one.table: {column.name: column for column in one.columns} for one in found}
        return sql.SQL(", ".join(read_as(connection, self._columns[table][name]) for name in columns))


@contextmanager
def trigger_snapshot(node: str, url: str, recorded: Batches, reading: Connection) -> Iterator[ExportedSnapshot]:
    """Record a batch and hold its snapshot in `reading` while the context lasts. Raises psycopg.Error, SourceError."""
    (text,) = reading.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
    time = datetime.fromisoformat(text)
    number = recorded.begin()
    reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    (seen,) = reading.execute("SELECT txid_current_snapshot()::text").fetchone() or ("",)
    recorded.record(number, seen, 0)
    position = position_of(number)
    if version(reading) < EXPORT:
        yield SharedSnapshot(node, reading, position, time)
        return
    (name,) = reading.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
    with closing(ExportedSnapshot(node, url, name, position, time)) as snapshot:
        yield snapshot
