"""What the capture by triggers keeps on a source beside the triggers of its tables: whether it is there, making it, removing it.

The file sql/postgres/capture.sql names each object in a heading, and objects are looked for in the catalogs, because 8.4 knows no
IF NOT EXISTS. The trap: the triggers that tag what streamer itself writes need the tables of install.sql, which a node that is only
a source does not have; they are made as soon as it is a target too.
"""

from __future__ import annotations

import re
from typing import Final

from streamer import statements
from streamer.capture.catalog import REPLICA_IDENTITY
from streamer.errors import SchemaError
from streamer.session import Connection, version

FILE: Final = "postgres/capture.sql"
MAKE_LANGUAGE: Final = "CREATE LANGUAGE plpgsql, as the owner of the database"
_WHOLE_ROWS: Final = "ALTER TABLE streamer.delta REPLICA IDENTITY FULL"
"""Without it a publication FOR ALL TABLES would forbid to delete what was read; before version 9.4 there is neither."""
_BODY: Final = re.compile(r"AS \$\$(.*?)\$\$", re.DOTALL)


def is_there(connection: Connection) -> bool:
    """Return whether triggers can write what they capture."""
    return "table delta" in _there(connection)


def has_language(connection: Connection) -> bool:
    """Return whether functions can be written in PL/pgSQL: before version 9.0 a database may lack it. Raises psycopg.Error."""
    return connection.execute("SELECT 1 FROM pg_catalog.pg_language WHERE lanname = 'plpgsql'").fetchone() is not None


def missing(connection: Connection) -> list[str]:
    """Return the headings of what has not been made here, or is not as this version makes it. Raises psycopg.Error."""
    there = _there(connection)
    parts = statements.parts(FILE)
    wanted = {heading: _text(part) for heading, part in parts.items() if _is_possible(heading, there)}
    return [heading for heading, text in wanted.items() if heading not in there or (text and there[heading] != text)]


def install(connection: Connection, node: str) -> str:
    """Make what is missing; return what was done: created, brought into line, kept. Raises SchemaError, psycopg.Error."""
    lacking = missing(connection)
    if not lacking:
        return "kept"
    if not has_language(connection):
        raise SchemaError(f'the database of "{node}" lacks the language of triggers', MAKE_LANGUAGE)
    done = "brought into line" if is_there(connection) else "created"
    parts = statements.parts(FILE)
    with connection.transaction():
        for heading in lacking:
            connection.execute(parts[heading].encode())
        if "table delta" in lacking and version(connection) >= REPLICA_IDENTITY:
            connection.execute(_WHOLE_ROWS)
    return done


def removal(connection: Connection) -> str:
    """Return the statements that remove all of it, but for the schema; empty if nothing is there. Raises psycopg.Error."""
    there = _there(connection)
    return "; ".join(_drop(heading) for heading in reversed(statements.parts(FILE)) if heading in there and "schema" not in heading)


def _drop(heading: str) -> str:
    kind, name, *on = heading.split(" ")
    if kind == "trigger":
        return f"DROP TRIGGER {name} ON streamer.{on[1]}"
    return f"DROP {kind.upper()} streamer.{name}{'()' if kind == 'function' else ''}"


def _is_possible(heading: str, there: dict[str, str]) -> bool:
    """Whether what a trigger is on exists."""
    return not heading.startswith("trigger") or f"table {heading.rpartition(' ')[2]}" in there


def _text(part: str) -> str:
    """The body of a function as the catalog keeps it; empty for anything else."""
    body = _BODY.search(part)
    return body[1] if body else ""


def _there(connection: Connection) -> dict[str, str]:
    """What is in the schema, by its heading; of a function the body."""
    return dict(connection.execute(_THERE).fetchall())


_THERE: Final = """
SELECT 'schema ' || nspname, '' FROM pg_catalog.pg_namespace WHERE nspname = 'streamer'
UNION ALL
SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.relname, ''
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relkind IN ('r', 'S')
UNION ALL
SELECT 'function ' || p.proname, p.prosrc
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'streamer'
UNION ALL
SELECT 'trigger ' || t.tgname || ' on ' || c.relname, ''
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND t.tgenabled = 'A'
"""
