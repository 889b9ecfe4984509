"""What commands do with the file of an SQLite node: look into it, make tables, take streamer's own away.

Looking never makes a file and waits for no lock. The trap: sqlite3's executescript() commits what is open, so that scripts are
executed statement by statement.

https://www.sqlite.org/uri.html
"""

from __future__ import annotations

import sqlite3
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from streamer import statements
from streamer.admin.findings import Finding, warning
from streamer.errors import SchemaError, TargetError
from streamer.model import EdgeName, TableDefinition, TableName
from streamer.sinks.sqlite_ddl import create_table, differences, fold_case, inspect, quote, refuse_clashes, target_name

BUSY_SECONDS: Final = 10.0
"""How long another program may keep a file locked."""
_OURS: Final = "SELECT count(*) FROM sqlite_master WHERE name IN ('streamer_progress', 'streamer_copy')"


class SqliteFile:
    """Implements foreign.ForeignTarget for the file `path` of a node."""

    def __init__(self, node: str, path: Path) -> None:
        self._node = node
        self._path = path

    @property
    def place(self) -> str:
        """The file."""
        return f'file "{self._path}"'

    def identity(self) -> Hashable:
        """Return the file's path without links."""
        return self._path.resolve()

    def check(self, definitions: Sequence[TableDefinition]) -> list[Finding]:
        """Return a warning for everything that the file lacks."""
        node = f'node "{self._node}"'
        return [warning(node, p.message.removeprefix(f"{node}: "), p.hint) for p in self._lacks(definitions)]

    def _lacks(self, definitions: Sequence[TableDefinition]) -> list[SchemaError]:
        if self._path.exists():
            with self._opened("ro") as connection:
                return differences(connection, self._node, definitions)
        self._require_directory()
        return [SchemaError(f'node "{self._node}": {self.place} does not exist yet', "run: streamer setup")]

    def create(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Make the file and what is missing in it, in one transaction."""
        refuse_clashes(d.table for d in definitions)
        with self._transaction() as connection:
            made = [] if connection.execute(_OURS).fetchone() == (2,) else ["tables streamer_progress and streamer_copy"]
            for statement in _split(statements.load("sqlite/install.sql")):
                connection.execute(statement)
            for definition in definitions:
                if inspect(connection, definition.table) is None:
                    connection.execute(create_table(definition))
                    made.append(f'table "{target_name(definition.table)}"')
        return made

    def statements(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Return what makes the tables."""
        refuse_clashes(d.table for d in definitions)
        return [create_table(d) for d in definitions]

    def existing(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables that are there."""
        known = {fold_case(name) for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return frozenset(t for t in tables if fold_case(target_name(t)) in known)

    def filled(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables that have rows."""
        return frozenset(t for t in tables if self._read(f"SELECT 1 FROM {quote(target_name(t))} LIMIT 1"))

    def has_ours(self) -> bool:
        """Return whether the file has streamer's own tables."""
        return self._read(_OURS) == [(2,)]

    def position(self, edge: EdgeName) -> str | None:
        """Return the edge's position."""
        query = "SELECT position FROM streamer_progress WHERE sync = ? AND source = ? AND target = ?"
        rows = self._read(query, [edge.sync, edge.source, edge.target]) if self.has_ours() else []
        return rows[0][0] if rows else None

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables that need no copy any more."""
        query = "SELECT schema_name, table_name FROM streamer_copy WHERE sync = ? AND source = ? AND target = ?"
        rows = self._read(query, [edge.sync, edge.source, edge.target]) if self.has_ours() else []
        return frozenset(TableName(*row) for row in rows)

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Delete their rows, and our tables if no other sync has some."""
        removed = []
        with self._transaction() as connection:
            for sync in syncs:
                where, key = "WHERE sync = ? AND target = ? AND source = coalesce(?, source)", (sync, self._node, source)
                connection.execute(f"DELETE FROM streamer_copy {where}", key)
                if connection.execute(f"DELETE FROM streamer_progress {where}", key).rowcount:
                    edge = f"edge {EdgeName(sync, source, self._node)}" if source else f'sync "{sync}"'
                    removed.append(f"progress of {edge}")
            if source is None and not connection.execute("SELECT 1 FROM streamer_progress LIMIT 1").fetchone():
                for statement in _split(statements.load("sqlite/uninstall.sql")):
                    connection.execute(statement)
                removed.append("tables streamer_progress and streamer_copy")
        return removed

    # -- the file ------------------------------------------------------------------------------------------------------------------

    def _read(self, query: str, parameters: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; none if there is no file yet."""
        if not self._path.exists():
            return []
        with self._opened("ro") as connection:
            return connection.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._opened("rwc") as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # closing undoes what was not committed

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        self._require_directory()
        try:
            uri = f"{self._path.absolute().as_uri()}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise TargetError(f'node "{self._node}": SQLite {self.place}: {error}', "check the file, its owner and mode") from error

    def _require_directory(self) -> None:
        parent = self._path.parent
        if not parent.is_dir():
            raise TargetError(f'node "{self._node}": directory "{parent}" does not exist', f"mkdir -p {parent}")


def _split(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
