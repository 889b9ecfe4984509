"""What commands do with a MySQL or MariaDB node: look into its database, make tables, take streamer's own away.

The trap: every statement that makes or drops a table is a transaction of its own there, so that a setup that breaks off leaves what
it has made; it goes on from there the next time.

https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final

import pymysql

from streamer import statements
from streamer.admin import check_mysql
from streamer.admin.findings import Finding
from streamer.errors import SchemaError
from streamer.model import EdgeName, TableDefinition, TableName
from streamer.node_config import Node
from streamer.sinks.mysql_ddl import OWN_TABLES, Names, create_table
from streamer.sinks.mysql_session import Connection, code_of, connect, failing, failure, is_lost
from streamer.sinks.mysql_table import inspect
from streamer.sinks.mysql_types import Engine

_OURS: Final = f"SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name IN {OWN_TABLES}"
_HAS_OWN: Final = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s"
_HAS: Final = "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s"
_EDGE: Final = "sync = %s AND source = %s AND target = %s"
_KEYLESS: Final = (1173, 3750)
"""Errors of MariaDB and MySQL for a table that would have no primary key."""
_TOO_LARGE: Final = (1071, 1117, 1118)
"""Errors for a key, a number of columns and a row that InnoDB does not hold."""
_SMALLER: Final = "exclude it, name the columns that are to travel (columns), or make it there with smaller types: see streamer ddl"
_AGAIN: Final = "when that is cured, run the command again"


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
            found += check_mysql.check_rights(self._node, self._address.database, connection)
            found += check_mysql.check_databases(self._node, connection, {self._names.of(d.table)[0] for d in definitions})
            for definition in definitions:
                found += check_mysql.check_table(self._node, connection, self._names, definition)
            return found

    def create(self, definitions: Sequence[TableDefinition]) -> Iterator[str]:
        """Make what is missing. A definition that MySQL does not take is refused before anything is made."""
        self._names.refuse_clashes(d.table for d in definitions)
        with self._session() as connection:
            engine = Engine.of(connection.rows("SELECT version()")[0][0])
            wanted = {d.table: create_table(d, engine, self._names) for d in definitions}
            if connection.rows(_OURS) != [(len(OWN_TABLES),)]:
                for statement in _split(statements.load("mysql/install.sql")):
                    connection.run(statement)
                yield f"tables {', '.join(OWN_TABLES)}"
            for table, creation in wanted.items():
                if inspect(connection, self._names, table) is None:
                    self._make(connection, table, creation)
                    yield f"table {self._names.sql(table)}"

    def _make(self, connection: Connection, table: TableName, creation: Iterable[str]) -> None:
        try:
            for statement in creation:
                connection.run(statement)
        except pymysql.MySQLError as error:
            if is_lost(error):
                raise
            if code_of(error) not in _KEYLESS:
                raise self._refused(table, error) from error
            setting = check_mysql.wants_keys(connection)
            raise SchemaError(
                f'node "{self._node}" makes no table without a primary key ({setting}), and "{table}" has none',
                check_mysql.KEYLESS_REMEDY.format(setting),
            ) from error

    def _refused(self, table: TableName, error: pymysql.MySQLError) -> SchemaError:
        told = failure(self._node, self._address, error, _SMALLER if code_of(error) in _TOO_LARGE else _AGAIN)
        return SchemaError(f'table "{table}" is refused: {told.message}', told.hint)

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
            return connection.rows(_OURS) != [(0,)]

    def position(self, edge: EdgeName) -> str | None:
        """Return the edge's position."""
        rows = self._of_edge("position", "streamer_progress", edge)
        return str(rows[0][0]) if rows else None

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables that need no copy any more."""
        rows = self._of_edge("schema_name, table_name, position", "streamer_copy", edge)
        return frozenset(TableName(str(s), str(n)) for s, n, position in rows if position != "0/0")

    def quarantined(self, edge: EdgeName) -> int | None:
        """Return how many changes of an edge are held."""
        rows = self._of_edge("count(*)", "streamer_quarantine", edge)
        return int(str(rows[0][0])) if rows else None

    def _of_edge(self, columns: str, table: str, edge: EdgeName) -> list[tuple[object, ...]]:
        with self._session() as connection:
            if not connection.rows(_HAS_OWN, (table,)):
                return []
            return connection.rows(f"SELECT {columns} FROM {table} WHERE {_EDGE}", (edge.sync, edge.source, edge.target))

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Delete their rows, and drop our tables if no other sync has some. Each statement commits by itself: where a setup or a
        teardown was broken off, some of the tables are there."""
        removed = []
        with self._session() as connection:
            there = [table for table in OWN_TABLES if connection.rows(_HAS_OWN, (table,))]
            for sync in syncs:
                where, key = "WHERE sync = %s AND target = %s AND source = coalesce(%s, source)", (sync, self._node, source)
                for table in self._unfinished(connection, where, key):
                    connection.run(f"DELETE FROM {self._names.sql(table)}")
                    removed.append(f'the part of table "{table}" that was copied')
                deleted = {table: connection.run(f"DELETE FROM {table} {where}", key) for table in reversed(there)}
                if deleted.get("streamer_progress"):
                    edge = f"edge {EdgeName(sync, source, self._node)}" if source else f'sync "{sync}"'
                    removed.append(f"progress of {edge}")
            used = "streamer_progress" in there and connection.rows("SELECT 1 FROM streamer_progress LIMIT 1")
            if source is None and not used:
                for statement in _split(statements.load("mysql/uninstall.sql")):
                    connection.run(statement)
                removed.append(f"tables {', '.join(OWN_TABLES)}")
        return removed

    def _unfinished(self, connection: Connection, where: str, key: tuple[str | None, ...]) -> list[TableName]:
        """Tables whose copy was broken off between two ranges: without records nobody could tell that they are not whole."""
        if not all(connection.rows(_HAS_OWN, (table,)) for table in ("streamer_copy", "streamer_copied_part")):
            return []
        parts = "SELECT 1 FROM streamer_copied_part p WHERE p.schema_name = c.schema_name AND p.table_name = c.table_name"
        query = f"SELECT schema_name, table_name FROM streamer_copy c {where} AND position = '0/0' AND EXISTS ({parts})"
        tables = [TableName(str(schema), str(name)) for schema, name in connection.rows(query, key)]
        return [table for table in tables if inspect(connection, self._names, table) is not None]

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        with failing(self._node, self._address, _AGAIN), closing(connect(self._node, self._address)) as connection:
            yield connection


def _split(script: str) -> list[str]:
    """The statements of a script of ours, in which a semicolon ends a line."""
    return [statement for statement in script.split(";\n") if statement.strip()]
