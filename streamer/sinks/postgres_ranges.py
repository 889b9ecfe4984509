"""Tables that a PostgreSQL target takes in ranges: the records, and what the table must be like.

A table that is being copied has a record at 0/0, and a row in streamer.copied_part for each range that is here, written in its own
transaction. When the last one is, the record gets its position; rows of ranges stay where they say different ones, until the
stream has passed them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg

from streamer.copied_ranges import text_of
from streamer.model import LSN, KeyRange, TableName
from streamer.ports import CopyTable, Start
from streamer.session import Connection, version
from streamer.sinks.postgres_session import EDGE, TargetSession
from streamer.sinks.postgres_table import TargetTable, quote, quoted, read_target

EXCLUSIONS: Final = 90000  # exclusion constraints: version 9.0

_OF_TABLE: Final = f"{EDGE} AND schema_name = %s AND table_name = %s"
_RECORD: Final = (
    "INSERT INTO streamer.copied_part (sync, source, target, schema_name, table_name, bounds, position, origin, origin_position, "
    "origin_time) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_COUNT: Final = f"UPDATE streamer.copied_part SET rows = %s WHERE {_OF_TABLE} AND bounds = %s"
_FORGET: Final = f"DELETE FROM streamer.copied_part WHERE {_OF_TABLE}"
_FORGET_EQUAL: Final = f"{_FORGET} AND NOT EXISTS (SELECT 1 FROM streamer.copied_part WHERE {_OF_TABLE} AND position <> %s)"
_UNIQUES: Final = (
    "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = %s AND c.relname = %s AND (i.indisunique{exclusions})"
)

Record = Callable[[Connection, TableName, LSN], None]
"""Writes a table's record: as the first write, so that readers of this WAL know that the transaction is not a local one."""


class PostgresRanges:
    """Implements ports.RangeLoader on the target of a session; `record` writes a table's own record, `empty` empties it, and
    `quarantines` tells whether the target holds back what it refuses."""

    def __init__(
        self,
        session: TargetSession,
        record: Record,
        empty: Callable[[Connection, TargetTable], None],
        quarantines: Callable[[TableName], bool],
    ) -> None:
        self._session = session
        self._quarantines = quarantines
        self._record = record
        self._empty = empty

    def takes(self, table: CopyTable) -> bool:
        """Return whether an index of the target's table leads with the column."""
        if table.ranged is None:
            return False
        with self._session.errors(), self._session.others.lent() as connection:
            target = read_target(connection, self._session.node, table.table)
        return any(names[0] == table.ranged.column for names in target.uniques)

    def resumes(self, table: CopyTable) -> bool:
        """Return whether there is one unique index, or no quarantine; and have the room of rows that never were committed used
        again."""
        with self._session.errors(), self._session.others.lent() as connection:
            exclusions = " OR i.indisexclusion" if version(connection) >= EXCLUSIONS else ""
            query = _UNIQUES.format(exclusions=exclusions)
            alone = connection.execute(query.encode(), _names(table.table)).fetchone() == (1,)
            if not alone and self._quarantines(table.table):
                return False
            connection.execute(f"VACUUM {quoted(table.table)}")  # it says so in a warning only if it may not
        return True

    def begin(self, table: CopyTable, start: Start) -> bool:
        """Record that a copy begins, of a table that is empty by then."""
        name = table.table
        with self._session.errors(), self._session.others.lent() as connection, connection.transaction():
            self._record(connection, name, LSN(0))
            connection.execute(_FORGET, self._key(name))
            target = read_target(connection, self._session.node, name)
            if start.replace:
                self._empty(connection, target)
                return True
            connection.execute(f"LOCK TABLE {quoted(name)} IN SHARE ROW EXCLUSIVE MODE")
            if connection.execute(f"SELECT 1 FROM {target.rows} LIMIT 1").fetchone() is None:
                return True
            raise psycopg.Rollback
        return False

    def finish(self, table: CopyTable, position: LSN, rows: int) -> None:
        """Record that the table is whole."""
        key = self._key(table.table)
        with self._session.errors(), self._session.others.lent() as connection, connection.transaction():
            self._record(connection, table.table, position)
            connection.execute(f"UPDATE streamer.copy SET rows = %s WHERE {_OF_TABLE}", [rows, *key])
            connection.execute(_FORGET_EQUAL, [*key, *key, str(position)])

    def forget(self, table: TableName) -> None:
        """Forget the ranges."""
        with self._session.errors(), self._session.connect() as connection:
            connection.execute(_FORGET, self._key(table))

    def rest(self) -> None:
        """End the sessions that nobody uses."""
        self._session.others.close_spare()

    def load(self, connection: Connection, target: TargetTable, within: KeyRange, start: Start, copy: Callable[[], int]) -> int:
        """Have `copy` write the rows of a range in the transaction that is open, in place of what is there."""
        source, at, text = self._session.edge.source, str(start.position), text_of(within)
        key = self._key(target.table)
        connection.execute("SET LOCAL synchronous_commit = on")
        connection.execute(_RECORD, [*key, text, at, source, at, start.time])
        connection.execute(_delete(target, within))
        rows = copy()
        connection.execute(_COUNT, [rows, *key, text])
        return rows

    def _key(self, table: TableName) -> list[str]:
        return [*self._session.where, *_names(table)]


def _names(table: TableName) -> list[str]:
    return [table.schema, table.name]


def _delete(target: TargetTable, within: KeyRange) -> bytes:
    """The statement that empties a range, which mostly is empty."""
    column, kind = quote(within.column), target.columns[within.column].type.base_type
    bounds = ((">", within.low), ("<=", within.high))
    terms = [f"{column} {operator} '{value}'::{kind}" for operator, value in bounds if value is not None]
    return f"DELETE FROM {target.rows} WHERE {' AND '.join(terms) or 'true'}".encode()
