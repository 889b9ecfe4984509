"""What commands do with the file of an SQLite node: look into it, make tables, take streamer's own away.

Looking never makes a file and waits for no lock. The trap: sqlite3's executescript() commits what is open, so that scripts are
executed statement by statement.

https://www.sqlite.org/uri.html
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

from streamer import statements
from streamer.config import Config
from streamer.errors import SchemaError, TargetError
from streamer.model import EdgeName, TableDefinition
from streamer.sinks.sqlite_ddl import create_table, differences, inspect, refuse_clashes, target_name

BUSY_SECONDS: Final = 10.0
"""How long another program may keep a file locked."""
_OURS: Final = "SELECT count(*) FROM sqlite_master WHERE name IN ('streamer_progress', 'streamer_copy')"


@contextmanager
def _opened(config: Config, node: str, mode: str) -> Iterator[sqlite3.Connection]:
    path = config.nodes[node].path
    if not path.parent.is_dir():
        raise TargetError(f'node "{node}": directory "{path.parent}" does not exist', f"mkdir -p {path.parent}")
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise TargetError(f'node "{node}": SQLite file "{path}": {error}', "check the file, its owner and mode") from error


@contextmanager
def _transaction(config: Config, node: str) -> Iterator[sqlite3.Connection]:
    with _opened(config, node, "rwc") as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")  # closing undoes what was not committed


def has_ours(config: Config, node: str) -> bool:
    """Return whether the file has streamer's own tables. Raises TargetError."""
    return read(config, node, _OURS) == [(2,)]


def read(config: Config, node: str, query: str, parameters: Sequence[str] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query; none if there is no file yet. Raises TargetError."""
    if not config.nodes[node].path.exists():
        return []
    with _opened(config, node, "ro") as connection:
        return connection.execute(query, parameters).fetchall()


def create(config: Config, node: str, definitions: Sequence[TableDefinition]) -> list[str]:
    """Make streamer's own tables and those of `definitions` that are missing; return what was made. Raises StreamerError."""
    refuse_clashes(d.table for d in definitions)
    with _transaction(config, node) as connection:
        made = [] if connection.execute(_OURS).fetchone() == (2,) else ["tables streamer_progress and streamer_copy"]
        for statement in _split(statements.load("sqlite/install.sql")):
            connection.execute(statement)
        for definition in definitions:
            if inspect(connection, definition.table) is None:
                connection.execute(create_table(definition))
                made.append(f'table "{target_name(definition.table)}"')
    return made


def lacks(config: Config, node: str, definitions: Sequence[TableDefinition]) -> list[SchemaError]:
    """Return what the file lacks to take rows of `definitions`. Raises StreamerError."""
    path = config.nodes[node].path
    if path.exists():
        with _opened(config, node, "ro") as connection:
            return differences(connection, node, definitions)
    if not path.parent.is_dir():
        raise TargetError(f'node "{node}": directory "{path.parent}" does not exist', f"mkdir -p {path.parent}")
    return [SchemaError(f'node "{node}": file "{path}" does not exist yet', "run: streamer setup")]


def knows(config: Config, edge: EdgeName) -> bool:
    """Return whether the file holds something of an edge that ends there. Raises TargetError."""
    query = "SELECT 1 FROM streamer_progress WHERE sync = ? AND source = ? AND target = ?"
    return has_ours(config, edge.target) and bool(read(config, edge.target, query, [edge.sync, edge.source, edge.target]))


def forget(config: Config, node: str, syncs: Sequence[str], source: str | None = None) -> list[str]:
    """Forget these syncs, and take streamer's own tables away with the last one; return what was removed.

    With `source`, only forget what came from there. Raises TargetError.
    """
    removed = []
    with _transaction(config, node) as connection:
        for sync in syncs:
            where = "WHERE sync = ? AND target = ? AND source = coalesce(?, source)"
            connection.execute(f"DELETE FROM streamer_copy {where}", (sync, node, source))
            if connection.execute(f"DELETE FROM streamer_progress {where}", (sync, node, source)).rowcount:
                removed.append(f"progress of edge {EdgeName(sync, source, node)}" if source else f'progress of sync "{sync}"')
        if source is None and not connection.execute("SELECT 1 FROM streamer_progress LIMIT 1").fetchone():
            for statement in _split(statements.load("sqlite/uninstall.sql")):
                connection.execute(statement)
            removed.append("tables streamer_progress and streamer_copy")
    return removed


def _split(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
