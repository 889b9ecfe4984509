"""Triggers on the tables of syncs with several sources: they keep deleted keys, and the versions of rows with merged columns.

A deleted row has no version any more, so a trigger writes a tombstone whose own transaction tells when and where the row was
deleted. There is one generated function a table, from a template in sql/. The trap: a key is found again by a hash of its text, and
the application's sessions write text in their own way; the function pins the settings where the type of the key depends on them.

https://www.postgresql.org/docs/current/plpgsql-trigger.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import sql

from streamer import statements
from streamer.errors import SchemaError, TargetError
from streamer.model import TableName
from streamer.session import Connection, reason_of, version
from streamer.sinks.postgres_table import TargetTable, owning, quote, quoted
from streamer.versions import COMMIT_TIMES, captures, keeps_commit_times, key_hash, key_id, key_text

CONDITIONS: Final = 90000  # of triggers
DIGITS: Final = 90000  # extra_float_digits = 3, bytea_output
IMAGES: Final = 90400  # rows are compared byte by byte
UPSERT: Final = 90500
PARTITIONS: Final = 100000
LOCK_TIMEOUT: Final = 90300
INTERNAL: Final = 90000  # pg_trigger.tgisinternal
CLONES: Final = 130000  # pg_trigger.tgparentid
PATIENCE_SECONDS: Final = 10
"""How long making triggers may wait for a table: whoever writes to it waits behind us."""

ALWAYS: Final = frozenset({"zz_streamer_delete", "zz_streamer_key", "zz_streamer_truncate"})
MERGED_ALWAYS: Final = frozenset({"zz_streamer_insert"})
MERGED: Final = frozenset({"zz_streamer_version"})

_UPSERT: Final = (
    "INSERT INTO streamer.tombstone (id, schema_name, table_name, key) VALUES (gone, {schema}, {name}, old_key) "
    "ON CONFLICT (id) DO UPDATE SET deleted = now();"
)
_UPDATE_OR_INSERT: Final = """UPDATE streamer.tombstone AS t SET deleted = now() WHERE t.id = gone;
    IF NOT FOUND THEN
        INSERT INTO streamer.tombstone (id, schema_name, table_name, key) VALUES (gone, {schema}, {name}, old_key);
    END IF;"""
_FORGET: Final = "DELETE FROM streamer.version AS v WHERE v.id = gone;"
_SETTINGS: Final = (
    "SET datestyle = 'ISO' SET intervalstyle = 'postgres' SET timezone = 'UTC' SET bytea_output = 'hex' "
    "SET extra_float_digits = 3 SET lc_monetary = 'C'"
)
"""As in `session`: what values are read with."""
_OLDEST_SETTINGS: Final = (
    "SET datestyle = 'ISO' SET intervalstyle = 'postgres' SET timezone = 'UTC' SET extra_float_digits = 2 SET lc_monetary = 'C'"
)
_UNLESS_MOVED: Final = """IF TG_OP = 'UPDATE' THEN
        IF NOT ({moves}) THEN
            RETURN NULL;
        END IF;
    END IF;"""


def require_commit_timestamps(connection: Connection, node: str) -> None:
    """Refuse a server on which nothing tells when a row was written. Raises SchemaError with the remedy."""
    told = lacks_commit_timestamps(connection, captures=captures(connection))
    if told:
        raise SchemaError(f'node "{node}" {told[0]}', told[1])


def lacks_commit_timestamps(connection: Connection, *, captures: bool) -> tuple[str, str] | None:
    """Return why conflict = "latest" cannot work on this server, and the remedy; None if it can: it keeps commit times, or triggers
    capture what is changed there (`captures`), and when."""
    if captures or keeps_commit_times(connection):
        return None
    other = (
        'or capture its changes by triggers (capture = "trigger"), '
        'or set conflict to a list of the sources in the order in which they win, like conflict = ["a", "b"]'
    )
    if version(connection) < COMMIT_TIMES:
        return (
            'keeps no commit times before version 9.5, and conflict = "latest" needs them to tell which write is the later one',
            f"upgrade it, {other}",
        )
    return (
        'has track_commit_timestamp off, and conflict = "latest" needs it to tell which write is the later one',
        f"ALTER SYSTEM SET track_commit_timestamp = on, then restart that server; {other}",
    )


# -- what is there -----------------------------------------------------------------------------------------------------------------


def missing_triggers(connection: Connection, table: TableName, *, merged: bool = False) -> bool:
    """Return whether the table lacks triggers, those for merged columns included if it has such. Raises psycopg.Error."""
    wanted = ALWAYS | MERGED_ALWAYS if merged else ALWAYS
    found = connection.execute(_TRIGGERS, [table.schema, table.name]).fetchall()
    always = {name for name, enabled, _, _ in found if enabled == "A"}
    firing = {name for name, enabled, _, _ in found if enabled != "D"}
    return not (wanted <= always and (not merged or firing >= MERGED))


_TRIGGERS: Final = r"""
SELECT t.tgname, t.tgenabled::text, p.proname, pg_catalog.obj_description(p.oid, 'pg_proc')
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace o ON o.oid = p.pronamespace AND o.nspname = 'streamer'
WHERE n.nspname = %s AND c.relname = %s AND t.tgname LIKE 'zz\_streamer\_%%'
"""

_TABLES: Final = r"""
SELECT DISTINCT n.nspname, c.relname
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace o ON o.oid = p.pronamespace AND o.nspname = 'streamer'
WHERE t.tgname LIKE 'zz\_streamer\_%%' AND {own}
ORDER BY 1, 2
"""

_IDLE_FUNCTIONS: Final = r"""
SELECT p.proname FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace AND n.nspname = 'streamer'
WHERE (p.proname LIKE 'keys\_%' OR p.proname LIKE 'versions\_%')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid)
"""

_USED: Final = """
SELECT 1 FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace AND n.nspname = 'streamer'
WHERE p.proname = %s
"""

_FANCY: Final = """
WITH RECURSIVE types(oid, base, kind) AS (
    SELECT t.oid, t.typbasetype, t.typtype
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND a.attname = ANY(%(key)s) AND NOT a.attisdropped
    UNION ALL
    SELECT t.oid, t.typbasetype, t.typtype FROM types d JOIN pg_catalog.pg_type t ON d.kind = 'd' AND t.oid = d.base
)
SELECT 1 FROM types
WHERE kind NOT IN ('d', 'e') AND oid <> ALL ('{bool, int2, int4, int8, numeric, text, varchar, bpchar, name, uuid, oid, inet, cidr,
    macaddr, bit, varbit, "char"}'::pg_catalog.regtype[])
"""
"""A key column whose type may be written in different ways; a domain is what it is made of."""

_FIXED: Final = """
SELECT a.attname
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
  AND a.atttypid = ANY ('{bool, int2, int4, int8, oid, uuid, date, timestamp, timestamptz}'::pg_catalog.regtype[])
"""
"""Columns in which equal values are the same bytes."""

_SLEEPING_CLONES: Final = """
WITH RECURSIVE tree(oid) AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
    UNION ALL
    SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT n.nspname, c.relname, t.tgname
FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.oid AND t.tgname = ANY(%s) AND t.tgenabled <> 'A'
JOIN pg_catalog.pg_class c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""


# -- making and removing -----------------------------------------------------------------------------------------------------------


def ensure(connection: Connection, target: TargetTable, merged: Collection[str]) -> str:
    """Give the table the triggers that it needs; `merged` are its delta, max and min columns. Return what was done.

    A table without a key gets none: "kept" says that nothing was to be done. Raises TargetError, psycopg.Error.
    """
    table = target.table
    found = connection.execute(_TRIGGERS, [table.schema, table.name]).fetchall()
    wanted = dict(_scripts(connection, target, merged)) if target.keys else {}
    there = {function: comment for _, _, function, comment in found}
    comments = {function: comment for function, (comment, _) in wanted.items()}
    complete = not wanted or not missing_triggers(connection, table, merged=bool(merged))
    if complete and there == comments and not _sleeping_clones(connection, table):
        return "kept"
    with patiently(connection, table):
        _drop(connection, table)
        for _, script in wanted.values():
            connection.execute(script.encode())
        for schema, name, trigger in _sleeping_clones(connection, table):
            connection.execute(f"ALTER TABLE {quoted(TableName(schema, name))} ENABLE ALWAYS TRIGGER {trigger}".encode())
    return ("renewed" if found else "made") if wanted else "removed"


def tables_with_triggers(connection: Connection) -> list[TableName]:
    """Return the tables that have triggers of ours; of partitioned ones the root. Raises psycopg.Error."""
    number = version(connection)
    own = "t.tgparentid = 0" if number >= CLONES else "true"
    if number >= INTERNAL:
        own += " AND NOT t.tgisinternal"
    return [TableName(*row) for row in connection.execute(_TABLES.format(own=own).encode())]


def remove_unwanted(connection: Connection, wanted: Collection[TableName]) -> list[TableName]:
    """Remove the triggers of all other tables, and functions that no trigger uses. Return those tables.

    Raises TargetError, psycopg.Error.
    """
    unwanted = [table for table in tables_with_triggers(connection) if table not in wanted]
    for table in unwanted:
        with patiently(connection, table):
            _drop(connection, table)
    for (function,) in connection.execute(_IDLE_FUNCTIONS.encode()).fetchall():
        connection.execute(f"DROP FUNCTION IF EXISTS streamer.{quote(function)}()".encode())
    return unwanted


@contextmanager
def patiently(connection: Connection, table: TableName) -> Iterator[None]:
    """A transaction that alters the table, and gives up when the table stays locked by somebody else. Raises TargetError."""
    try:
        with connection.transaction():
            limit = "lock_timeout" if version(connection) >= LOCK_TIMEOUT else "statement_timeout"
            connection.execute(f"SET LOCAL {limit} = '{PATIENCE_SECONDS}s'".encode())
            yield
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        raise TargetError(
            f'table "{table}" could not be locked within {PATIENCE_SECONDS} s',
            "end the transactions that use it (see pg_locks), then run: streamer setup",
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        if reason_of(error).startswith("permission denied for schema"):
            raise
        raise TargetError(f'table "{table}" can only be altered by its owner', owning(connection, table)) from None


def _drop(connection: Connection, table: TableName) -> None:
    """Remove all of the table's triggers of ours, and their functions."""
    found = connection.execute(_TRIGGERS, [table.schema, table.name]).fetchall()
    for trigger in {row[0] for row in found}:
        connection.execute(f"DROP TRIGGER {quote(trigger)} ON {quoted(table)}".encode())
    for function in {row[2] for row in found}:
        used = connection.execute(_USED, [function]).fetchone()
        if used is None:  # a table that was renamed, and its successor, may share one
            connection.execute(f"DROP FUNCTION streamer.{quote(function)}()".encode())


def _sleeping_clones(connection: Connection, table: TableName) -> list[tuple[str, str, str]]:
    """The triggers of partitions that do not fire for applied rows: servers differ in what they clone."""
    if version(connection) < PARTITIONS:
        return []
    names = sorted(ALWAYS | MERGED_ALWAYS)
    return connection.execute(_SLEEPING_CLONES, [table.schema, table.name, names]).fetchall()


# -- what is made ------------------------------------------------------------------------------------------------------------------


def _scripts(connection: Connection, target: TargetTable, merged: Collection[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """The table's functions: name, comment, and the statements that make function and triggers."""
    values = _values(connection, target, merged)
    names = {"keys": "postgres/keys.sql"} | ({"versions": "postgres/versions.sql"} if merged else {})
    for kind, file in names.items():
        function = f"{kind}_{key_id(target.table, ()).replace('-', '')[:16]}"
        template = statements.load(file)
        digest = _md5((template + repr(values)).encode())
        comment = f"triggers of {target.table} ({digest})"
        tag = f"body_{digest}"  # no name holds the digest of a text that holds the name
        script = statements.fill(template, values | {"function": function, "comment": _literal(connection, comment), "tag": tag})
        yield function, (comment, script)


def _values(connection: Connection, target: TargetTable, merged: Collection[str]) -> dict[str, str]:
    """What stands between at signs in the templates."""
    table, key = target.table, target.keys[0]
    columns = [quote(c) for c in key]
    schema, name = _literal(connection, table.schema), _literal(connection, table.name)
    server, moves = version(connection), _key_changes(connection, table, key)
    bury = _UPSERT if server >= UPSERT else _UPDATE_OR_INSERT
    copied = [c.name for c in target.columns.values() if c.name in merged or (merged and c.generated)]
    return {
        "table": quoted(table),
        "settings": "" if _is_plain(connection, table, key) else _SETTINGS if server >= DIGITS else _OLDEST_SETTINGS,
        "truncated": _literal(connection, key_id(table, ())),
        "old_key": key_text(server, "OLD", columns),
        "old_id": key_hash(connection, table, "old_key"),
        "new_key": key_text(server, "NEW", columns),
        "new_id": key_hash(connection, table, "new_key"),
        "when": f"WHEN ({moves})" if server >= CONDITIONS else "",
        "unless_moved": "" if server >= CONDITIONS else _UNLESS_MOVED.format(moves=moves),
        "forget": _FORGET if merged else "",
        "bury": bury.format(schema=schema, name=name),
        "equate": " ".join(f"OLD.{quote(c)} := NEW.{quote(c)};" for c in copied),
    }


def _key_changes(connection: Connection, table: TableName, key: Sequence[str]) -> str:
    """The condition for an update that changes the key, as the WAL sees it: 1.0 and 1.00 are two keys. It costs every update.

    pg_dump and pg_upgrade make it of what the server tells, and there two bare ROW() are compared column by column: hence COALESCE.
    """
    fixed = {name for (name,) in connection.execute(_FIXED, [table.schema, table.name])}
    tests = [f"OLD.{quote(c)} IS DISTINCT FROM NEW.{quote(c)}" for c in key if c in fixed]
    if rest := [quote(c) for c in key if c not in fixed]:
        old, new = (f"ROW({', '.join(f'{row}.{c}' for c in rest)})" for row in ("OLD", "NEW"))
        images = version(connection) >= IMAGES
        tests.append(f"COALESCE({old}) OPERATOR(pg_catalog.*<>) {new}" if images else f"{old}::text <> {new}::text")
    return " OR ".join(tests)


def _is_plain(connection: Connection, table: TableName, key: Sequence[str]) -> bool:
    """Whether the text of a key is the same in every session."""
    return connection.execute(_FANCY, {"schema": table.schema, "name": table.name, "key": list(key)}).fetchone() is None


def _literal(connection: Connection, text: str) -> str:
    return sql.Literal(text).as_string(connection).strip()


def _md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()
