"""The SQLite sink: one file, one connection for streaming, the progress row first in every transaction.

A transaction takes the write lock at once (BEGIN IMMEDIATE) and moves the progress row from the position that we wrote last,
so that of two daemons on one edge only one can win. The file is in WAL mode: readers see the state before a group or after it,
and are never in the way. The trap: a commit must survive a crash before it may be confirmed to the source, and in WAL mode
that takes synchronous=FULL.

https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from streamer import statements
from streamer.copytext import parse
from streamer.errors import ApplyError, ConnectError, TargetError
from streamer.model import LSN, EdgeName, Group, Sharing, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, RangeLoader, Start, Written
from streamer.post_data import Builder
from streamer.sinks.group_apply import Applier
from streamer.sinks.in_order import write_in_order
from streamer.sinks.quarantine import OnError, Quarantine, stops
from streamer.sinks.ranges import Ranges
from streamer.sinks.sqlite_apply import REFUSED, SqliteTables, quarantine_table, refusal
from streamer.sinks.sqlite_columns import Columns
from streamer.sinks.sqlite_ddl import TargetTable, inspect, quote, read_target, target_name
from streamer.sinks.sqlite_file import DatabaseFile
from streamer.sinks.sqlite_plan import insert_batch
from streamer.sinks.sqlite_ranges import SqliteEngine, transaction
from streamer.sinks.unrepresentable import Replacements

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program's write lock on the file."""

_EDGE: Final = "sync = ? AND source = ? AND target = ?"
_NOW: Final = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_BEGIN_EDGE: Final = (
    "INSERT INTO streamer_progress (sync, source, target, system_identifier, database, slot, position, updated) "
    f"VALUES (?, ?, ?, ?, ?, ?, ?, {_NOW})"
)
_FOLLOW: Final = f"UPDATE streamer_progress SET system_identifier = ? WHERE {_EDGE}"
_ADVANCE: Final = (
    "UPDATE streamer_progress SET position = ?, origin = ?, origin_position = ?, origin_time = ?, "
    f"updated = {_NOW} WHERE {_EDGE} AND position = ?"
)
_RECORD_COPY: Final = (
    "INSERT OR REPLACE INTO streamer_copy (sync, source, target, schema_name, table_name, position, rows, copied_at) "
    f"VALUES (?, ?, ?, ?, ?, ?, ?, {_NOW})"
)


class SqliteSink:
    """Implements ports.Sink for an SQLite file; waits `busy_timeout` seconds for the locks of other programs."""

    parallel_loads = False
    sharing = Sharing.ANY

    def __init__(
        self,
        edge: EdgeName,
        path: Path,
        busy_timeout: float = BUSY_TIMEOUT,
        replacements: Replacements | None = None,
        on_error: OnError = stops,
    ) -> None:
        self._edge = edge
        self._where = (edge.sync, edge.source, edge.target)
        self._node = edge.target
        self._file = DatabaseFile(edge.target, path, busy_timeout)
        self._replacements = replacements or Replacements(edge)
        self._ranges = Ranges(edge, SqliteEngine(edge, self._file, self._record_copy), on_error)
        self._connection: sqlite3.Connection | None = None
        self._on_error = on_error
        self._applier: Applier  # from open() on, as is the next
        self._quarantine: Quarantine
        self._mark = 0
        #: what the progress row holds inside our transaction, and outside of it
        self._written = self._committed = LSN(0)

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self) -> Progress | None:
        """Connect, making our own tables if they are missing, and return what it holds of the edge."""
        with self._file.errors():
            self._connection = self._file.connect()
            with transaction(self._connection):
                _install(self._connection)
            tables = SqliteTables(self._connection, self._node, self._replacements)
            self._applier = Applier(self._node, tables.of, self._connection.execute, refusal, self._replacements)
            self._quarantine = Quarantine(self._edge, quarantine_table(self._edge, self._connection), self._on_error)
            progress = self._read_progress(self._connection)
        if progress is not None:
            self._written = self._committed = progress.position
        return progress

    def _read_progress(self, connection: sqlite3.Connection) -> Progress | None:
        row = connection.execute(
            f"SELECT system_identifier, database, slot, position FROM streamer_progress WHERE {_EDGE}", self._where
        ).fetchone()
        copied = connection.execute(
            f"SELECT schema_name, table_name, position FROM streamer_copy WHERE {_EDGE}", self._where
        ).fetchall()
        if row is None:
            return None
        return Progress(
            SlotIdentity(*row[:3]),
            LSN.parse(row[3]),
            {TableName(schema, name): LSN.parse(at) for schema, name, at in copied},
            ranges=self._ranges.read(connection),
        )

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ConnectError(f"{self._file} is not open")
        return self._connection

    # -- before streaming --------------------------------------------------------------------------------------------

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        identity = (slot.system_identifier, slot.database, slot.slot)
        with self._file.errors():
            try:
                self._open.execute(_BEGIN_EDGE, (*self._where, *identity, str(position)))
            except sqlite3.IntegrityError:
                raise self._not_ours() from None
        self._written = self._committed = position

    def follow(self, slot: SlotIdentity) -> None:
        """Update the edge's progress row."""
        with self._file.errors():
            self._open.execute(_FOLLOW, (slot.system_identifier, *self._where))

    def has(self, table: TableName) -> bool:
        """Return whether the file has this table."""
        with self._file.errors():
            return inspect(self._open, table) is not None

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows."""
        with self._file.errors():
            read_target(self._open, self._node, table)
            return self._open.execute(f"SELECT 1 FROM {quote(target_name(table))} LIMIT 1").fetchone() is None

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        with self._file.errors():
            self._record_copy(self._open, table, position, None)

    def leave(self, table: TableName) -> None:
        """Forget the table."""
        with self._file.errors():
            where = f"{_EDGE} AND schema_name = ? AND table_name = ?"
            self._open.execute(f"DELETE FROM streamer_copy WHERE {where}", (*self._where, table.schema, table.name))

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, in one transaction on a connection of its own."""
        with self._file.errors(), closing(self._file.connect()) as connection, transaction(connection):
            write = partial(self._write_rows, connection, table, blocks)
            if start.within is not None:
                return self._ranges.load(connection, table, start.within, start.position, write)
            if start.replace:
                connection.execute(f"DELETE FROM {quote(target_name(table.table))}")
            count = write()
            self._record_copy(connection, table.table, start.position, count)
        return count

    def _write_rows(self, connection: sqlite3.Connection, table: CopyTable, blocks: Iterable[bytes]) -> int:
        insert = insert_batch(self._columns_of(table, read_target(connection, self._node, table.table)))
        try:
            return sum(insert.run(connection, list(parse(block))) for block in blocks)
        except REFUSED as error:
            raise ApplyError(
                f'table "{table.table}" on "{self._node}" refused a copied row: {error}',
                "give the target's table the constraints of the source's; streamer copies again by itself",
            ) from error

    def _columns_of(self, table: CopyTable, target: TargetTable) -> Columns:
        key = [table.columns.index(name) for name in table.key if name in table.columns]
        return Columns(table.table, table.columns, table.type_oids, key, target, self._replacements)

    def _record_copy(self, connection: sqlite3.Connection, table: TableName, position: LSN, rows: int | None) -> None:
        connection.execute(_RECORD_COPY, (*self._where, table.schema, table.name, str(position), rows))

    @property
    def ranges(self) -> RangeLoader:
        """What records tables that are copied in ranges."""
        return self._ranges

    @property
    def post_data(self) -> Builder | None:
        """Return None: keys come with the table, and other indexes are left to the user."""
        return None

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return the edge's own progress: one source only feeds a file."""
        with self._file.errors():
            progress = self._read_progress(self._open)
        return {} if progress is None else {self._edge.source: progress}

    def try_lock(self, name: str) -> bool:
        """Return True: there is no other edge."""
        return True

    def unlock(self, name: str) -> None:
        """Do nothing."""

    # -- streaming ---------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group and its progress in one target transaction."""
        return write_in_order(groups, interrupted, self._write)

    def _write(self, group: Group) -> Written:
        connection = self._open
        with self._file.errors():
            try:
                if not connection.in_transaction:
                    self._file.require_unmoved()
                    connection.execute("BEGIN IMMEDIATE")
                    self._mark = self._replacements.mark()
                self._advance(connection, group)
                written = self._applier.apply(group, self._quarantine)
                if group.complete:
                    connection.execute("COMMIT")
                    self._file.require_unmoved()
                    self._committed = group.position
                    self._file.empty_wal(connection)
            except BaseException:
                if connection.in_transaction:
                    self._replacements.back_to(self._mark)
                connection.rollback()
                raise
        return replace(written, replaced=self._replacements.take()) if group.complete else written

    def _advance(self, connection: sqlite3.Connection, group: Group) -> None:
        """Move the progress row, from the position that we wrote last and no other."""
        origin = group.origin
        values = (str(group.position), origin.node, str(origin.position), origin.commit_time.isoformat())
        if connection.execute(_ADVANCE, (*values, *self._where, str(self._written))).rowcount != 1:
            raise self._not_ours()
        self._written = group.position

    def _not_ours(self) -> TargetError:
        return TargetError(
            f'edge {self._edge}: its progress in "{self._file.path}" is not where this daemon left it ({self._written})',
            "let one daemon only write this edge",
        )

    def durable(self) -> LSN:
        """Return the position of the last commit; commits are synchronous."""
        return self._committed

    def quarantined(self) -> int:
        """Return how many changes the file holds in quarantine."""
        with self._file.errors():
            return self._quarantine.held()

    def cancel(self) -> None:
        """Break off the statement that is running; waiting for another program's lock ends by itself."""
        connection = self._connection
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.interrupt()

    def close(self) -> None:
        """Disconnect, undoing an open transaction."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()  # rolls back


def _install(connection: sqlite3.Connection) -> None:
    """Make our own tables, if they are missing; not by executescript(), which would commit first."""
    statement = ""
    for line in statements.load("sqlite/install.sql").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
