"""Indexes and constraints of a PostgreSQL target that come after the rows: their records, and making each, which ends its record.

CREATE INDEX and the delete of the record are one transaction, so a crash leaves both or neither, and never an index that is not
valid. What the server refuses is recorded with the reason, and not asked again before `streamer setup` says so. The trap: a server
notices that its client has died only when it wants to answer; the next one would wait for an index that nobody gets.

https://www.postgresql.org/docs/current/sql-createindex.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg

from streamer.errors import SchemaError
from streamer.model import TableName
from streamer.post_data import Kind, PostData
from streamer.session import Connection, end_with_us, reason_of
from streamer.sinks.postgres_session import TargetSession

_OF_TARGET: Final = "sync = %s AND target = %s"
_ALL: Final = (
    "SELECT kind, schema_name, table_name, other_schema, other_table, on_schema, on_table, name, statement, what, number, refused "
    "FROM streamer.post_data"
)
_RECORD: Final = (
    "INSERT INTO streamer.post_data (sync, target, kind, schema_name, table_name, other_schema, other_table, on_schema, on_table, "
    "name, statement, what, refused) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_IS_THERE: Final = """
SELECT 1 FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = %(schema)s AND t.relname = %(table)s
  AND (EXISTS (SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
               WHERE i.indrelid = t.oid AND c.relname = %(name)s AND i.indisvalid)
       OR EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conrelid = t.oid AND k.conname = %(name)s))
"""
_PASSING: Final = ("08", "25", "40", "57P", "55P03")
"""Errors that say nothing about the statement: the connection, a server that is read-only or goes down, deadlocks, locks. Classes
and codes."""


def all_listed(connection: Connection) -> list[PostData]:
    """Return what is recorded for any sync. Raises psycopg.Error."""
    return [_read(*row) for row in connection.execute(f"{_ALL} ORDER BY number")]


def listed(connection: Connection, sync: str, target: str) -> list[PostData]:
    """Return what is recorded for a target of a sync. Raises psycopg.Error."""
    return [_read(*row) for row in connection.execute(f"{_ALL} WHERE {_OF_TARGET} ORDER BY number", [sync, target])]


def _read(
    kind: Kind,
    schema: str,
    table: str,
    other_schema: str | None,
    other: str | None,
    on_schema: str,
    on: str,
    name: str,
    statement: str,
    what: str,
    number: int,
    refused: str,
) -> PostData:
    tables = [TableName(schema, table)]
    if other_schema is not None and other is not None:
        tables.append(TableName(other_schema, other))
    return PostData(kind, tuple(tables), TableName(on_schema, on), name, statement, what, number, refused)


def record(connection: Connection, sync: str, target: str, made: Sequence[TableName], after: Sequence[PostData]) -> None:
    """Record what comes after the rows of tables that were `made` just now; of earlier ones of these names nothing is left."""
    for table in made:
        of_table = "AND on_schema = %s AND on_table = %s"
        connection.execute(
            f"DELETE FROM streamer.post_data WHERE {_OF_TARGET} {of_table}", [sync, target, table.schema, table.name]
        )
    for one in after:
        (table, *others) = one.tables
        other = (others[0].schema, others[0].name) if others else (None, None)
        values = (table.schema, table.name, *other, one.on.schema, one.on.name, one.name, one.statement, one.what, one.refused)
        connection.execute(_RECORD, [sync, target, one.kind, *values])


def retry_refused(connection: Connection, sync: str, target: str) -> list[str]:
    """Have what was refused be tried again when the edge begins; return what that is."""
    query = f"UPDATE streamer.post_data SET refused = '' WHERE {_OF_TARGET} AND refused <> '' RETURNING what"
    return [what for (what,) in connection.execute(query, [sync, target])]


class PostgresPostData:
    """Implements post_data.Builder on the target of a session."""

    def __init__(self, session: TargetSession) -> None:
        self._session = session
        self._of = (session.edge.sync, session.edge.target)

    def listed(self) -> Sequence[PostData]:
        """Return what is recorded."""
        with self._session.errors():
            try:
                return listed(self._session.connection, *self._of)
            except psycopg.errors.UndefinedTable:
                raise SchemaError(
                    f'schema streamer on "{self._session.node}" is of an older version', "run: streamer setup"
                ) from None

    def build(self, one: PostData) -> str:
        """Make it, in one transaction with the end of its record."""
        with self._session.errors(), self._session.connect() as connection:
            _settings(connection)
            try:
                with connection.transaction():
                    _build(connection, one)
            except psycopg.Error as error:
                if not self._is_refusal(error):
                    raise
                reason = reason_of(error)
                connection.execute("UPDATE streamer.post_data SET refused = %s WHERE number = %s", [reason, one.number])
                return reason
        return ""

    def _is_refusal(self, error: psycopg.Error) -> bool:
        """Whether it would be the same the next time, or a person has broken it off."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            return not self._session.cancelled
        return error.sqlstate is not None and not error.sqlstate.startswith(_PASSING)


def _settings(connection: Connection) -> None:
    """What is right for groups of changes is not for reading whole tables."""
    connection.execute("RESET enable_hashjoin")
    connection.execute("RESET enable_mergejoin")
    end_with_us(connection)


def _build(connection: Connection, one: PostData) -> None:
    mine = connection.execute("SELECT 1 FROM streamer.post_data WHERE number = %s FOR UPDATE", [one.number]).fetchone()
    if mine is None:  # another edge has made it
        return
    names = {"schema": one.on.schema, "table": one.on.name, "name": one.name}
    if connection.execute(_IS_THERE, names).fetchone() is None:
        connection.execute(one.statement.encode())
    connection.execute("DELETE FROM streamer.post_data WHERE number = %s", [one.number])
