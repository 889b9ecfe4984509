"""What streamer keeps in a PostgreSQL database: whether all of it is there, and making it.

Every statement of the file makes one thing, and its text names it; those whose thing is there are left out. (8.4 does not know
IF NOT EXISTS.)
"""

from __future__ import annotations

import re
from typing import Final

from streamer import statements
from streamer.config import OWN_SCHEMA
from streamer.session import Connection

_FILE: Final = "postgres/install.sql"
_NAMED: Final = re.compile(r"^(?:CREATE SCHEMA|CREATE TABLE|ALTER TABLE) ([\w.]+)(?: ADD COLUMN (\w+))?", re.MULTILINE)


def _statements() -> dict[str, str]:
    """The statements of the file by the names of what they make: schema, schema.table, or schema.table.column."""
    found = {}
    for statement in statements.load(_FILE).split(";\n"):
        for name, column in _NAMED.findall(statement):
            found[f"{name}.{column}" if column else name] = statement
    return found


def tables() -> list[str]:
    """Return the names of our tables."""
    return [name.partition(".")[2] for name in _statements() if name.count(".") == 1]


def has_table(connection: Connection, name: str) -> bool:
    """Return whether there is a table of this name among ours."""
    return connection.execute(_TABLE_THERE, [OWN_SCHEMA, name]).fetchone() is not None


def is_there(connection: Connection) -> bool:
    """Return whether anything of it is there."""
    return has_table(connection, "progress")


def is_complete(connection: Connection) -> bool:
    """Return whether all of it is there; an older version of streamer had less."""
    return not _missing(connection)


def _missing(connection: Connection) -> list[str]:
    """The statements that have not been executed here."""
    there = {name for (name,) in connection.execute(_THERE, {"schema": OWN_SCHEMA})}
    return [statement for name, statement in _statements().items() if name not in there]


_TABLE_THERE: Final = """
SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'r'
"""
_THERE: Final = """
SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s
UNION ALL
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind = 'r'
UNION ALL
SELECT n.nspname || '.' || c.relname || '.' || a.attname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relkind = 'r'
"""


def install(connection: Connection) -> str:
    """Make what is missing; return what was done. Raises psycopg.Error."""
    missing = _missing(connection)
    if not missing:
        return "kept"
    done = "brought into line" if is_there(connection) else "created"
    with connection.transaction():
        for statement in missing:
            connection.execute(statement.encode())
    return done
