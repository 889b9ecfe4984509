"""What streamer keeps in a PostgreSQL database: whether all of it is there, and making it."""

from __future__ import annotations

import re
from typing import Final

from streamer import statements
from streamer.session import Connection

_FILE: Final = "postgres/install.sql"
_TABLES: Final = re.compile(r"^CREATE TABLE IF NOT EXISTS streamer\.(\w+)", re.MULTILINE)
_COLUMNS: Final = re.compile(r"^\s+ALTER TABLE streamer\.(\w+) ADD COLUMN (\w+)", re.MULTILINE)


def tables() -> list[str]:
    """Return the names of our tables."""
    return _TABLES.findall(statements.load(_FILE))


def is_there(connection: Connection) -> bool:
    """Return whether anything of it is there."""
    return connection.execute("SELECT to_regclass('streamer.progress') IS NOT NULL").fetchone() == (True,)


def is_complete(connection: Connection) -> bool:
    """Return whether all of it is there; an older version of streamer had less."""
    added = [f"{table}.{column}" for table, column in _COLUMNS.findall(statements.load(_FILE))]
    tables_there = {name for (name,) in connection.execute(_TABLES_THERE)}
    columns_there = {name for (name,) in connection.execute(_COLUMNS_THERE)}
    return tables_there.issuperset(tables()) and columns_there.issuperset(added)


_TABLES_THERE: Final = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relkind = 'r'
"""
_COLUMNS_THERE: Final = """
SELECT c.relname || '.' || a.attname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = 'streamer' AND c.relkind = 'r'
"""


def install(connection: Connection) -> str:
    """Make what is missing; return what was done. Raises psycopg.Error."""
    if is_complete(connection):  # also because CREATE SCHEMA IF NOT EXISTS needs the right to create even where it creates nothing
        return "kept"
    done = "brought into line" if is_there(connection) else "created"
    with connection.transaction():
        connection.execute(statements.load(_FILE).encode())
    return done
