"""Making missing tables on a PostgreSQL target from statements that were prepared on the source: all of them or none.

What exists already (a schema, a type, a sequence) is left as it is. A statement that is not required may fail; it is undone
alone and told of. What comes after the rows is tried while there are none, undone, and recorded. The trap: where the role may not
act as a replica, foreign keys would fire while changes are applied table by table, so they are left out there.

https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SESSION-REPLICATION-ROLE
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import psycopg

from streamer.errors import SchemaError
from streamer.model import Creation, TableName
from streamer.post_data import PostData, Structure
from streamer.session import Connection, is_denied, reason_of
from streamer.sinks import postgres_post_data

_EXISTS: Final = {
    "schema": "SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s",
    "collation": (
        "SELECT 1 FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE nspname = %(schema)s "
        "AND collname = %(name)s AND collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))"
    ),
    "extension": "SELECT 1 FROM pg_extension WHERE extname = %(name)s",
    "type": (
        "SELECT 1 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE nspname = %(schema)s AND typname = %(name)s"
    ),
    "sequence": (
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname = %(schema)s AND relname = %(name)s AND relkind = 'S'"
    ),
}
_BUILT_FROM: Final = ("collation", "extension", "type")
_TABLES: Final = ("table", "detail")
_TABLE_REMEDY: Final = "make the table there yourself, or put it into exclude; then run this command again"
_BUILT_FROM_REMEDY: Final = "make it there yourself, or put the tables that use it into exclude; then run this command again"


class RefusedTableError(SchemaError):
    """The target does not take the statement that makes a table, or a part of it; it may take another one."""


def has_table(connection: Connection, table: TableName) -> bool:
    """Return whether the database has an ordinary or partitioned table of this name."""
    query = (
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')"
    )
    return connection.execute(query, [table.schema, table.name]).fetchone() is not None


def create(connection: Connection, node: str, creations: Sequence[Creation]) -> list[str]:
    """Execute the statements in one transaction, leaving out what exists; return one line for each thing made or left out.

    Raises psycopg.Error if a required statement fails, SchemaError if it is for what tables are built from, RefusedTableError if it
    is for a table; nothing is made then.
    """
    lines = []
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        for creation in creations:
            if not exists(connection, creation):
                lines += _execute(connection, node, creation)
    return lines


def create_tables(connection: Connection, sync: str, target: str, structure: Structure) -> list[str]:
    """Do the same with tables, and record what comes after their rows. Raises as `create`."""
    with connection.transaction():
        lines = create(connection, target, structure.before)
        after, denied = structure.after, []
        if not _may_be_replica(connection):
            denied = [f"{one.what}: the role may not set session_replication_role" for one in after if one.kind == "foreign key"]
            after = [one for one in after if one.kind != "foreign key"]
        tried = _tried(connection, after)
        postgres_post_data.record(connection, sync, target, [c.name for c in structure.before if c.kind == "table"], tried)
    lines += [f"left out {what}" for what in (*structure.left_out, *denied)]
    lines += [f"refuses {one.what}: {one.refused}; see: streamer check" for one in tried if one.refused]
    if waiting := [one for one in tried if not one.refused]:
        lines.append(f"after the rows: {', '.join(one.what for one in waiting)}")
    return lines


def _tried(connection: Connection, after: Sequence[PostData]) -> list[PostData]:
    """What the target says of each while the tables are empty: nothing is left of it. Foreign keys would lock tables of others."""
    told = []
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL search_path = pg_catalog")
        for one in after:
            refused = ""
            if one.kind != "foreign key":
                try:
                    with connection.transaction():
                        connection.execute(one.statement.encode())
                except psycopg.Error as error:
                    if connection.broken:
                        raise
                    refused = reason_of(error)
            told.append(replace(one, refused=refused))
    return told


def _execute(connection: Connection, node: str, creation: Creation) -> list[str]:
    statement = creation.statement.encode()
    if creation.required:
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            if connection.broken or is_denied(error):
                raise
            what = creation.what
            if creation.kind == "detail" and " of table " not in what:  # as pg_dump names it
                what += f" of table {creation.name}"
            told = f'node "{node}" refuses {what}: {reason_of(error)}'
            if creation.kind in _BUILT_FROM:
                raise SchemaError(told, _BUILT_FROM_REMEDY) from error
            if creation.kind in _TABLES:
                raise RefusedTableError(told, _TABLE_REMEDY) from error
            raise
        return [] if creation.kind == "detail" else [f"created {creation.what}"]
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.Error as error:
        if connection.broken:
            raise
        return [f"left out {creation.what}: {reason_of(error)}"]
    return [] if creation.kind == "detail" else [f"created {creation.what}"]


def exists(connection: Connection, creation: Creation) -> bool:
    """Return whether the database has the schema, extension, type or sequence already."""
    query = _EXISTS.get(creation.kind)
    names = {"schema": creation.name.schema, "name": creation.name.name}
    return query is not None and connection.execute(query, names).fetchone() is not None


def _may_be_replica(connection: Connection) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True
