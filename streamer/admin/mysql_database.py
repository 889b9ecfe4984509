"""What commands do with a MySQL or MariaDB node: look into its database, make tables, take streamer's own away.

The trap: every statement that makes or drops a table is a transaction of its own there, so that a setup that breaks off leaves what
it has made; it goes on from there the next time.

https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final

from streamer import statements
from streamer.admin import check_mysql
from streamer.admin.findings import Finding
from streamer.model import EdgeName, TableDefinition, TableName
from streamer.node_config import Node
from streamer.sinks.mysql_ddl import Names, create_table
from streamer.sinks.mysql_session import Connection, connect, failing
from streamer.sinks.mysql_table import inspect
from streamer.sinks.mysql_types import Engine

_OURS: Final = (
    "SELECT count(*) FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_name IN ('streamer_progress', 'streamer_copy')"
)
_HAS: Final = "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s"
_EDGE: Final = "sync = %s AND source = %s AND target = %s"


class MysqlDatabase:
    """Implements foreign.ForeignTarget for the database in the url of a node."""

    def __init__(self, node: str, settings: Node) -> None:
        self._node = node
        self._address = settings.mysql
        self._names = Names(self._address.database, settings.schemas)

    @property
    def place(self) -> str:
        """The database and its server."""
        address = self._address
        return f'database "{address.database}" on {address.unix_socket or f"{address.host}:{address.port}"}'

    def identity(self) -> Hashable:
        """Return what tells the server from others, and the database."""
        with self._session() as connection:
            return connection.rows("SELECT @@hostname, @@port, @@datadir, DATABASE()")[0]

    def check(self, definitions: Sequence[TableDefinition]) -> list[Finding]:
        """Return what is to be said of the server, our rights there, and the tables."""
        self._names.refuse_clashes(d.table for d in definitions)
        with self._session() as connection:
            found = list(check_mysql.judge_server(self._node, check_mysql.read_server(connection)))
            found += check_mysql.check_rights(self._node, self._address, connection)
            for definition in definitions:
                found += check_mysql.check_table(self._node, self._address, connection, self._names, definition)
            return found

    def create(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Make what is missing."""
        self._names.refuse_clashes(d.table for d in definitions)
        with self._session() as connection:
            engine = Engine.of(connection.rows("SELECT version()")[0][0])
            made = [] if connection.rows(_OURS) == [(2,)] else ["tables streamer_progress and streamer_copy"]
            for statement in _split(statements.load("mysql/install.sql")) if made else ():
                connection.run(statement)
            for definition in definitions:
                if inspect(connection, self._names, definition.table) is None:
                    for statement in create_table(definition, engine, self._names):
                        connection.run(statement)
                    made.append(f"table {self._names.sql(definition.table)}")
        return made

    def statements(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Return what makes the tables on this server: MySQL and MariaDB differ."""
        self._names.refuse_clashes(d.table for d in definitions)
        with self._session() as connection:
            engine = Engine.of(connection.rows("SELECT version()")[0][0])
        return [statement for d in definitions for statement in create_table(d, engine, self._names)]

    def existing(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables that are there."""
        with self._session() as connection:
            return frozenset(t for t in tables if connection.rows(_HAS, self._names.of(t)))

    def filled(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables that have rows."""
        with self._session() as connection:
            return frozenset(t for t in tables if connection.rows(f"SELECT 1 FROM {self._names.sql(t)} LIMIT 1"))

    def has_ours(self) -> bool:
        """Return whether the database has streamer's own tables."""
        with self._session() as connection:
            return connection.rows(_OURS) == [(2,)]

    def position(self, edge: EdgeName) -> str | None:
        """Return the edge's position."""
        rows = self._of_edge("position", "streamer_progress", edge)
        return str(rows[0][0]) if rows else None

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables that need no copy any more."""
        return frozenset(TableName(str(s), str(n)) for s, n in self._of_edge("schema_name, table_name", "streamer_copy", edge))

    def _of_edge(self, columns: str, table: str, edge: EdgeName) -> list[tuple[object, ...]]:
        with self._session() as connection:
            if connection.rows(_OURS) != [(2,)]:
                return []
            return connection.rows(f"SELECT {columns} FROM {table} WHERE {_EDGE}", (edge.sync, edge.source, edge.target))

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Delete their rows, and drop our tables if no other sync has some."""
        removed = []
        with self._session() as connection:
            for sync in syncs:
                where, key = "WHERE sync = %s AND target = %s AND source = coalesce(%s, source)", (sync, self._node, source)
                connection.run(f"DELETE FROM streamer_copy {where}", key)
                if connection.run(f"DELETE FROM streamer_progress {where}", key):
                    edge = f"edge {EdgeName(sync, source, self._node)}" if source else f'sync "{sync}"'
                    removed.append(f"progress of {edge}")
            if source is None and not connection.rows("SELECT 1 FROM streamer_progress LIMIT 1"):
                for statement in _split(statements.load("mysql/uninstall.sql")):
                    connection.run(statement)
                removed.append("tables streamer_progress and streamer_copy")
        return removed

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        with failing(self._node, self._address), closing(connect(self._node, self._address)) as connection:
            yield connection


def _split(script: str) -> list[str]:
    """The statements of a script of ours, in which a semicolon ends a line."""
    return [statement for statement in script.split(";\n") if statement.strip()]
