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
from streamer.admin import check_sqlite
from streamer.admin.findings import Finding, warning
from streamer.admin.writable import judge_unwritable
from streamer.errors import TargetError
from streamer.model import EdgeName, TableDefinition, TableName
from streamer.sinks.sqlite_ddl import OWN_TABLES, create_table, fold_case, inspect, quote, refuse_clashes, target_name

BUSY_SECONDS: Final = 10.0
"""How long another program may keep a file locked."""
_OURS: Final = f"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN {OWN_TABLES}"


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
        """Return what the file lacks, and what does not fit."""
        refuse_clashes(d.table for d in definitions)
        found = [finding for d in definitions for finding in check_sqlite.check_definition(self._node, d)]
        if found:
            return found
        self._require_directory()
        if found := list(judge_unwritable(self._node, [self._path])):
            return found
        if self._path.exists():
            with self._opened("ro") as connection:
                return [finding for d in definitions for finding in check_sqlite.check_table(self._node, connection, d)]
        return [warning(f'node "{self._node}"', f"{self.place} does not exist yet", "run: streamer setup")]

    def create(self, definitions: Sequence[TableDefinition]) -> Iterator[str]:
        """Make the file and what is missing in it, in one transaction; tell of it when it is done."""
        refuse_clashes(d.table for d in definitions)
        with self._transaction() as connection:
            whole = connection.execute(_OURS).fetchone() == (len(OWN_TABLES),)
            made = [] if whole else [f"tables {', '.join(OWN_TABLES)}"]
            for statement in _split(statements.load("sqlite/install.sql")):
                connection.execute(statement)
            for definition in definitions:
                if inspect(connection, definition.table) is None:
                    connection.execute(create_table(definition))
                    made.append(f'table "{target_name(definition.table)}"')
        yield from made

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
        return self._read(_OURS) not in ([], [(0,)])

    def position(self, edge: EdgeName) -> str | None:
        """Return the edge's position."""
        query = "SELECT position FROM streamer_progress WHERE sync = ? AND source = ? AND target = ?"
        rows = self._read(query, [edge.sync, edge.source, edge.target]) if self.has_ours() else []
        return rows[0][0] if rows else None

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables that need no copy any more."""
        query = (
            "SELECT schema_name, table_name FROM streamer_copy WHERE sync = ? AND source = ? AND target = ? AND position <> '0/0'"
        )
        rows = self._read(query, [edge.sync, edge.source, edge.target]) if self.has_ours() else []
        return frozenset(TableName(*row) for row in rows)

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Delete their rows, and our tables if no other sync has some."""
        removed = []
        with self._transaction() as connection:
            kept = ["streamer_copy", *self._newer(connection)]
            for sync in syncs:
                where, key = "WHERE sync = ? AND target = ? AND source = coalesce(?, source)", (sync, self._node, source)
                for part in self._unfinished(connection, where, key):
                    connection.execute(f"DELETE FROM {quote(target_name(part))}")
                    removed.append(f'the part of table "{part}" that was copied')
                for table in kept:
                    connection.execute(f"DELETE FROM {table} {where}", key)
                if connection.execute(f"DELETE FROM streamer_progress {where}", key).rowcount:
                    edge = f"edge {EdgeName(sync, source, self._node)}" if source else f'sync "{sync}"'
                    removed.append(f"progress of {edge}")
            if source is None and not connection.execute("SELECT 1 FROM streamer_progress LIMIT 1").fetchone():
                for statement in _split(statements.load("sqlite/uninstall.sql")):
                    connection.execute(statement)
                removed.append(f"tables {', '.join(OWN_TABLES)}")
        return removed

    def quarantined(self, edge: EdgeName) -> int | None:
        """Return how many changes of an edge are held."""
        query = "SELECT count(*) FROM streamer_quarantine WHERE sync = ? AND source = ? AND target = ?"
        known = self._read("SELECT 1 FROM sqlite_master WHERE name = 'streamer_quarantine'")
        return int(self._read(query, [edge.sync, edge.source, edge.target])[0][0]) if known else None

    def _unfinished(self, connection: sqlite3.Connection, where: str, key: tuple[str | None, ...]) -> list[TableName]:
        """Tables whose copy was broken off between two ranges: without records nobody could tell that they are not whole."""
        if "streamer_copied_part" not in self._newer(connection):
            return []
        parts = "SELECT 1 FROM streamer_copied_part p WHERE p.schema_name = c.schema_name AND p.table_name = c.table_name"
        query = f"SELECT schema_name, table_name FROM streamer_copy c {where} AND position = '0/0' AND EXISTS ({parts})"
        tables = [TableName(*row) for row in connection.execute(query, key)]
        return [table for table in tables if inspect(connection, table) is not None]

    def _newer(self, connection: sqlite3.Connection) -> list[str]:
        """Tables of ours that files of an older version may lack."""
        query = "SELECT name FROM sqlite_master WHERE name IN ('streamer_quarantine', 'streamer_copied_part')"
        return [name for (name,) in connection.execute(query)]

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
