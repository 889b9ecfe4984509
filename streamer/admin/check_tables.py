"""`streamer check`, the tables: can their changes be captured on the source, and does each target have what it takes.

https://www.postgresql.org/docs/current/logical-replication-restrictions.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamer.admin.findings import Finding, error, warning
from streamer.capture.catalog import SourceTable
from streamer.capture.publication import VIA_ROOT
from streamer.model import Identity, TableName
from streamer.session import Connection, version
from streamer.sinks.postgres_table import owning, quote, quoted

ROW_SECURITY: Final = 90500
NUMBERS: Final = (700, 701, 1700)  # float4, float8, numeric


@dataclass(frozen=True, slots=True)
class Capture:
    """How a source's changes are read."""

    node: str
    version: int
    plugin: str
    #: the plugin writes NaN and infinity as null
    loses_nan: bool


def judge_source_table(capture: Capture, table: SourceTable) -> Iterator[Finding]:
    """Yield what keeps changes of the table from being captured. Pure."""
    what = f'table "{table.table}" on "{capture.node}"'
    name = quoted(table.table)
    if table.partitioned and capture.plugin == "pgoutput" and capture.version < VIA_ROOT:
        yield warning(
            what, "its partitions are published one by one in this version", "after adding a partition, run: streamer setup"
        )
    if table.partitioned:
        yield warning(
            what,
            "TRUNCATE, DETACH or DROP of one of its partitions is not replicated: the rows stay on the targets; nor is ATTACH of "
            "one that holds rows: they are missing there",
            "DELETE rows before, INSERT them after, or: streamer copy SYNC --table; TRUNCATE of the whole table is replicated",
        )
    numbers = [c.name for c in table.travelling if c.type_oid in NUMBERS]
    if capture.loses_nan and numbers:
        listed = ", ".join(numbers)
        if table.definition.primary_key or table.identity is Identity.INDEX:
            yield warning(
                what,
                f"wal2json before 2.6 writes NaN and infinity as null: NULL in {listed} is read again from the table",
                "install wal2json 2.6 or later there, or set capture to pgoutput",
            )
        else:
            yield error(
                what,
                f"wal2json before 2.6 writes NaN and infinity as null, and without a key {listed} cannot be read again",
                f"ALTER TABLE {name} ADD PRIMARY KEY (…), or set nodes.{capture.node}.capture to pgoutput",
            )


def check_source_rights(
    connection: Connection,
    node: str,
    tables: Sequence[SourceTable],
    unpublished: Collection[TableName],
    what_owners_do: str = "publish a table",
) -> list[Finding]:
    """Return what our role may not do with the tables; `unpublished` are those that setup has to alter. Raises psycopg.Error."""
    role, findings = quote(connection.info.user), []
    for table in tables:
        name = quoted(table.table)
        row: Any = connection.execute(
            _SOURCE_RIGHTS.format(policed=policed(connection)).encode(), [table.table.schema, table.table.name]
        ).fetchone()
        usage, select, owner, hidden = row
        what = f'table "{table.table}" on "{node}"'
        if not usage:
            findings.append(
                error(what, f"role {role} may not use its schema", f"GRANT USAGE ON SCHEMA {quote(table.table.schema)} TO {role}")
            )
        if not select:
            findings.append(error(what, f"role {role} may not read it", f"GRANT SELECT ON {name} TO {role}"))
        if hidden:
            findings.append(rows_are_hidden(what, role))
        if not owner and table.table in unpublished:
            reason = f"role {role} does not own it, and only the owner can {what_owners_do}"
            findings.append(error(what, reason, owning(connection, table.table)))
    return findings


def policed(connection: Connection) -> str:
    """Return the expression for whether policies of the table c bind our role."""
    return "row_security_active(c.oid)" if version(connection) >= ROW_SECURITY else "false"


def rows_are_hidden(what: str, role: str) -> Finding:
    """Return the finding for a table whose policies bind our role."""
    return error(
        what, f"its policies (row level security) hide rows from role {role}", f"as a superuser: ALTER ROLE {role} BYPASSRLS"
    )


_SOURCE_RIGHTS: Final = """
SELECT has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), pg_has_role(c.relowner, 'USAGE'), {policed}
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""
