"""A consistent state of the source's tables, and the exact position where the changes after it begin.

A temporary slot exports its snapshot: the snapshot holds precisely what was committed before the slot's consistent point. The
stream's own slot is not needed for it, so that tables can be copied at any time, again, or for one more target, while it goes on.
The session that made the temporary slot must stay open and untouched for as long as anybody imports the snapshot.

https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from psycopg import sql

from streamer.capture.row_filter import condition_errors
from streamer.capture.row_versions import row_versions
from streamer.errors import StreamerError
from streamer.model import LSN, POSTGRES_EPOCH, SlotIdentity, TableName
from streamer.ports import Held, Progress, RowVersion
from streamer.session import Connection, connect, reported, version
from streamer.versions import SOURCE_SEEN, read_seen

BLOCK: Final = 256 * 1024
"""Bytes gathered before rows are handed on: one row a time would cost more than the row."""
TEMPORARY_SLOTS: Final = 100000  # version 10

_PROGRESS: Final = (
    "SELECT source, system_identifier, database, slot, position, CASE WHEN origin = source THEN origin_time END, "
    f"{SOURCE_SEEN} FROM streamer.progress WHERE sync = %s AND target = %s"
)
_COPIED: Final = "SELECT source, schema_name, table_name, position FROM streamer.copy WHERE sync = %s AND target = %s"


class ExportedSnapshot:
    """Implements ports.Snapshot with connections of its own, one for each table that is read."""

    def __init__(self, node: str, url: str, name: str, position: LSN, time: datetime) -> None:
        self._node = node
        self._url = url
        self._name = name
        self.position = position
        self.time = time

    @contextmanager
    def rows(self, table: TableName, columns: Sequence[str], where: str = "") -> Iterator[Iterator[bytes]]:
        """Give the table's rows as of the snapshot, in blocks of COPY text."""
        chosen = sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("")
        only = sql.SQL(f" WHERE (\n{where}\n)" if where else "")
        query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(chosen, sql.Identifier(table.schema, table.name), only)
        with self._imported() as connection, condition_errors(self._node, table, where), connection.cursor().copy(query) as copy:
            yield self._blocks(copy, table, where)

    def is_empty(self, table: TableName) -> bool:
        """Return whether the table has no rows."""
        query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table.schema, table.name))
        with self._imported() as connection:
            return connection.execute(query).fetchone() is None

    def has_deleted(self, table: TableName) -> bool:
        """Return whether there are tombstones of the table."""
        query = "SELECT 1 FROM streamer.tombstone WHERE schema_name = %s AND table_name = %s LIMIT 1"
        with self._imported() as connection:
            return connection.execute(query, [table.schema, table.name]).fetchone() is not None

    def held(self, sync: str) -> Mapping[str, Held]:
        """Return what the snapshot holds of the sync's other sources, as their edges have noted it in this database."""
        with self._imported() as connection:
            rows = connection.execute(_PROGRESS, [sync, self._node]).fetchall()
            copied = connection.execute(_COPIED, [sync, self._node]).fetchall()
        return {
            source: Held(
                Progress(
                    SlotIdentity(system, database, slot),
                    LSN.parse(position),
                    {TableName(schema, table): LSN.parse(at) for of, schema, table, at in copied if of == source},
                    read_seen(seen),
                ),
                time or POSTGRES_EPOCH,
            )
            for source, system, database, slot, position, time, seen in rows
        }

    def versions(self, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
        """Give the versions of the table's rows and deleted keys that are newer than `since`."""
        with self._imported() as connection:
            yield from row_versions(connection, self._node, table, key, since)

    @contextmanager
    def _imported(self) -> Iterator[Connection]:
        """A connection that sees the snapshot."""
        with reported(self._node), connect(self._node, self._url, application="streamer copy") as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._name)))
            yield connection

    def _blocks(self, rows: Iterable[bytes | bytearray | memoryview], table: TableName, where: str) -> Iterator[bytes]:
        with condition_errors(self._node, table, where):  # the rows are read inside the target's own error handling
            yield from _blocks(rows)


def _blocks(rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    gathered: list[bytes | bytearray | memoryview] = []
    size = 0
    for row in rows:
        gathered.append(bytes(row))
        size += len(row)
        if size >= BLOCK:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    if gathered:
        yield b"".join(gathered)


@contextmanager
def exported_snapshot(
    node: str, url: str, plugin: Callable[[Connection], str], explain: Callable[[str], StreamerError]
) -> Iterator[ExportedSnapshot]:
    """Hold a snapshot of the database while the context lasts; `plugin` tells which output plugin the node has."""
    # The clock is asked before the slot is made. A transaction takes its commit time while it still runs for others, and the slot
    # waits for all that run when it begins; so whoever took a time before our question is in the snapshot, and what is not in it
    # was committed later. The other way round, a commit could fall between the snapshot and the question and look older than rows
    # that do not hold it. What is in the snapshot may be a little newer than this time: nobody is sent that again.
    time = _now(node, url)
    connection = connect(node, url, application="streamer snapshot", replication=True)
    slot = f"streamer_copy_{os.getpid()}_{threading.get_ident() % 1_000_000_007}"
    try:
        name, position = _create(connection, slot, plugin(connection), explain)
        yield ExportedSnapshot(node, url, name, position, time)
    finally:
        _drop(connection, slot)


def _now(node: str, url: str) -> datetime:
    with reported(node), connect(node, url, application="streamer snapshot") as connection:
        (text,) = connection.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
    return datetime.fromisoformat(text)


def _create(connection: Connection, slot: str, plugin: str, explain: Callable[[str], StreamerError]) -> tuple[str, LSN]:
    temporary = "TEMPORARY " if version(connection) >= TEMPORARY_SLOTS else ""
    export = " EXPORT_SNAPSHOT" if temporary else ""  # before version 10 that was what it always did
    result = connection.pgconn.exec_(f'CREATE_REPLICATION_SLOT "{slot}" {temporary}LOGICAL "{plugin}"{export}'.encode())
    values = [result.get_value(0, i) for i in range(result.nfields)] if result.ntuples else []
    if len(values) < 3 or values[1] is None or values[2] is None:
        raise explain(result.error_message.decode(errors="replace"))
    return values[2].decode(), LSN.parse(values[1].decode())


def _drop(connection: Connection, slot: str) -> None:
    """Give the slot back; a temporary one goes with its session."""
    if version(connection) < TEMPORARY_SLOTS and not connection.broken:
        connection.pgconn.exec_(f'DROP_REPLICATION_SLOT "{slot}"'.encode())
    connection.close()
