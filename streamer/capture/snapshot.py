"""A consistent state of the source's tables, and the exact position where the changes after it begin.

A temporary slot exports its snapshot: the snapshot holds precisely what was committed before the slot's consistent point. The
stream's own slot is not needed for it, so that tables can be copied at any time, again, or for one more target, while it goes on.
The session that made the temporary slot must stay open and untouched for as long as anybody imports the snapshot.

https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from psycopg import sql

from streamer.errors import StreamerError
from streamer.model import LSN, TableName
from streamer.session import Connection, connect, reported, version

BLOCK: Final = 256 * 1024
"""Bytes gathered before rows are handed on: one row a time would cost more than the row."""
TEMPORARY_SLOTS: Final = 100000  # version 10


class ExportedSnapshot:
    """Implements ports.Snapshot with connections of its own, one for each table that is read."""

    def __init__(self, node: str, url: str, name: str, position: LSN) -> None:
        self._node = node
        self._url = url
        self._name = name
        self.position = position

    @contextmanager
    def rows(self, table: TableName, columns: Sequence[str]) -> Iterator[Iterator[bytes]]:
        """Give the table's rows as of the snapshot, in blocks of COPY text."""
        chosen = sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("")
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(chosen, sql.Identifier(table.schema, table.name))
        with reported(self._node), connect(self._node, self._url, application="streamer copy") as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._name)))
            with connection.cursor().copy(query) as copy:
                yield self._blocks(copy)

    def _blocks(self, rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
        with reported(self._node):  # the rows are read inside the target's own error handling
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
    connection = connect(node, url, application="streamer snapshot", replication=True)
    slot = f"streamer_copy_{os.getpid()}_{threading.get_ident() % 1_000_000_007}"
    try:
        name, position = _create(connection, slot, plugin(connection), explain)
        yield ExportedSnapshot(node, url, name, position)
    finally:
        _drop(connection, slot)


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
