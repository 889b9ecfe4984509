"""`streamer check`, the tables of a PostgreSQL target: what is missing, what differs, what our role may not do there.

https://www.postgresql.org/docs/current/logical-replication-restrictions.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from streamer.admin.check_tables import policed, rows_are_hidden
from streamer.admin.findings import Finding, error, warning
from streamer.capture.catalog import FULL_TEXT, GENERATED, PARTITIONED, SourceTable
from streamer.model import Identity
from streamer.session import Connection, version
from streamer.sinks.postgres_ddl import has_table
from streamer.sinks.postgres_table import quote, quoted, read_target

RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a target's table."""

    type_name: str
    #: an insert that does not name it fails
    required: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table as it is on a target, and what our role may not do with it."""

    columns: dict[str, TargetColumn]
    #: sets of columns that are unique and not null
    keys: tuple[tuple[str, ...], ...]
    role: str
    denied: tuple[str, ...]
    schema_denied: bool
    #: whether the server reads bytea in hex
    reads_hex: bool
    #: policies hide rows from our role
    policed: bool = False
    #: triggers and rules that somebody has made, and that act on what a replica writes; as ALTER TABLE names them
    always: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """A table that a target does not have."""

    role: str
    #: the right that our role lacks to create it, as GRANT spells it; empty if it lacks none
    lacking: str


def read_target_table(connection: Connection, node: str, table: SourceTable) -> TargetTable | Missing:
    """Return what the target has of a source's table. Raises psycopg.Error."""
    number, names = version(connection), [table.table.schema, table.table.name]
    if not has_table(connection, table.table):
        return Missing(connection.info.user, _lacking_right(connection, table.table.schema))
    query = _COLUMNS.format(
        identity="a.attidentity = ''" if number >= PARTITIONED else "true",
        generated="a.attgenerated = ''" if number >= GENERATED else "true",
    )
    columns = {name: TargetColumn(kind, required) for name, kind, required in connection.execute(query, names)}
    rights = _RIGHTS.format(policed=policed(connection)).encode()
    row: Any = connection.execute(rights, {"schema": names[0], "name": names[1], "rights": list(RIGHTS)}).fetchone()
    keys = read_target(connection, node, table.table).keys
    return TargetTable(columns, keys, connection.info.user, tuple(row[0]), row[1], number >= FULL_TEXT, row[2], tuple(row[3]))


def _lacking_right(connection: Connection, schema: str) -> str:
    """What our role lacks to create a table in the schema, or the schema itself."""
    query = "SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s"
    if (row := connection.execute(query, [schema]).fetchone()) is not None:
        return "" if row[0] else f"USAGE, CREATE ON SCHEMA {quote(schema)}"
    may_create: Any = connection.execute(
        "SELECT has_database_privilege(current_database(), 'CREATE'), current_database()"
    ).fetchone()
    return "" if may_create[0] else f"CREATE ON DATABASE {quote(may_create[1])}"


_COLUMNS: Final = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull AND NOT a.atthasdef AND {identity} AND {generated}
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %s AND c.relname = %s
"""

_RIGHTS: Final = """
SELECT ARRAY(SELECT r FROM unnest(%(rights)s::text[]) AS r WHERE NOT has_table_privilege(c.oid, r)),
       NOT has_schema_privilege(n.oid, 'USAGE'), {policed},
       ARRAY(SELECT 'TRIGGER ' || quote_ident(t.tgname) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
             JOIN pg_namespace s ON s.oid = p.pronamespace
             WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R') AND s.nspname NOT IN ('streamer', 'pg_catalog')
             UNION ALL
             SELECT 'RULE ' || quote_ident(r.rulename) FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled IN ('A', 'R')
             ORDER BY 1)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""


def judge_target_table(node: str, source: SourceTable, target: TargetTable | Missing) -> Iterator[Finding]:
    """Yield what keeps rows of the source's table from being written. Pure."""
    what = f'table "{source.table}" on "{node}"'
    if isinstance(target, Missing):
        if target.lacking:
            reason = f"does not exist, and role {target.role} may not create it"
            yield error(what, reason, f"GRANT {target.lacking} TO {quote(target.role)}")
        else:
            yield warning(what, "does not exist", "streamer setup creates it")
        return
    yield from _judge_rights(what, source, target)
    for name in target.always:
        remedy = f"if it is not meant to: ALTER TABLE {quoted(source.table)} ENABLE {name}"
        yield warning(what, f"its {name} acts on what streamer writes, too", remedy)
    yield from _judge_columns(what, source, target)
    yield from _judge_key(what, source, target)


def _judge_rights(what: str, source: SourceTable, target: TargetTable) -> Iterator[Finding]:
    role = quote(target.role)
    if target.schema_denied:
        grant = f"GRANT USAGE ON SCHEMA {quote(source.table.schema)} TO {role}"
        yield error(what, f"role {target.role} may not use its schema", grant)
    if target.denied:
        listed = ", ".join(target.denied)
        yield error(what, f"role {target.role} lacks {listed}", f"GRANT {listed} ON {quoted(source.table)} TO {role}")
    if target.policed:
        yield rows_are_hidden(what, role)


def _judge_columns(what: str, source: SourceTable, target: TargetTable) -> Iterator[Finding]:
    name = quoted(source.table)
    for column in source.travelling:
        there = target.columns.get(column.name)
        if there is None:
            remedy = f"ALTER TABLE {name} ADD COLUMN {quote(column.name)} {column.type_name}"
            yield error(what, f'has no column "{column.name}"', remedy)
        elif there.type_name == "bytea" and not target.reads_hex:
            yield error(
                what,
                f'column "{column.name}" is bytea, which no version before 9.0 reads in hex',
                "leave the table or the column out",
            )
        elif not holds(there.type_name, column.type_name):
            yield warning(
                what,
                f'column "{column.name}" is {there.type_name}, on the source {column.type_name}',
                f"ALTER TABLE {name} ALTER COLUMN {quote(column.name)} TYPE {column.type_name}, if values are refused",
            )
    known = {c.name for c in source.definition.columns}
    for column_name in (n for n, c in target.columns.items() if c.required and n not in known):
        yield error(
            what,
            f'column "{column_name}" is NOT NULL without a default, and the source does not have it',
            f"ALTER TABLE {name} ALTER COLUMN {quote(column_name)} DROP NOT NULL, or SET DEFAULT …",
        )


_ORDER: Final = ("smallint", "integer", "bigint", "numeric")
_TYPE: Final = re.compile(r"(.+?)(?:\((\d+)(?:,(\d+))?\))?")


def holds(there: str, source: str) -> bool:
    """Whether a type is known to take all values of another one of its kind, both as format_type() writes them. Pure."""
    mine, theirs = _TYPE.fullmatch(there), _TYPE.fullmatch(source)
    if there == source or mine is None or theirs is None:
        return there == source
    if mine[1] in ("text", "character varying") and theirs[1] in ("text", "character varying"):
        return mine[2] is None or (theirs[2] is not None and int(theirs[2]) <= int(mine[2]))
    if mine[1] == theirs[1] == "numeric":
        return mine[2] is None or (
            theirs[2] is not None and all(a <= b for a, b in zip(_digits(theirs), _digits(mine), strict=True))
        )
    if mine[2] is None and mine[1] in _ORDER and theirs[1] in _ORDER:
        return _ORDER.index(theirs[1]) < _ORDER.index(mine[1])
    return (mine[1], theirs[1]) == ("double precision", "real")


def _digits(numeric: re.Match[str]) -> tuple[int, int]:
    """How many digits it has before and behind the point."""
    scale = int(numeric[3] or 0)
    return int(numeric[2]) - scale, scale


def _judge_key(what: str, source: SourceTable, target: TargetTable) -> Iterator[Finding]:
    """Updates and deletes find their rows by the replica identity; without an index each of them reads the whole table."""
    if source.identity is Identity.NOTHING:
        return
    if any(set(key) <= set(source.identity_columns) for key in target.keys):
        return
    if source.identity is Identity.FULL:
        yield warning(
            what,
            "has no key: every update and delete compares all columns of all rows",
            f"ALTER TABLE {quoted(source.table)} ADD PRIMARY KEY (…), on both sides",
        )
        return
    columns = ", ".join(map(quote, source.identity_columns))
    yield warning(
        what,
        f"no unique index covers its key ({', '.join(source.identity_columns)}): every update and delete reads the whole table",
        f"CREATE UNIQUE INDEX ON {quoted(source.table)} ({columns}), its columns NOT NULL",
    )
