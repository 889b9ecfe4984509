"""The tables of a MySQL or MariaDB connection, as group_apply writes to them.

The trap: tables are altered by hand while we run. Every few seconds of use a table is looked at again, and after an error about
columns at once, so that the error says what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

import pymysql
from pymysql.constants import ER

from streamer.model import Change, EdgeName, Relation, Row, TableName
from streamer.sinks.mysql_bulk import FEW, Bulk, Server
from streamer.sinks.mysql_ddl import Names
from streamer.sinks.mysql_fields import Fields
from streamer.sinks.mysql_plan import BATCH, Plan
from streamer.sinks.mysql_session import Connection, Error, code_of, reason_of
from streamer.sinks.mysql_table import read_target
from streamer.sinks.quarantine_table import QuarantineTable
from streamer.sinks.unrepresentable import Replacements

LOOK_SECONDS: Final = 5.0
"""For how long a table is taken to be as it was."""

_REFUSALS: Final = frozenset(
    {
        1048,
        1062,
        1118,
        1169,
        1216,
        1217,
        1264,
        1265,
        1292,
        1300,
        1364,
        1366,
        1367,
        1369,
        1406,
        1411,
        1451,
        1452,
        1526,
        1586,
        1644,
        1690,
    }
    | {1906, 3105, 3140, 3141, 3143, 3156, 3819, 3988, 4025, 4078}
)
"""Errors that belong to a row: NULLs, duplicates, ranges, lengths, foreign keys, partitions, triggers, JSON, checks.

https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-code-reference/
"""
_ALTERED: Final = (ER.BAD_FIELD_ERROR, ER.NO_SUCH_TABLE, ER.NO_SUCH_INDEX)


def refusal(error: Exception) -> str | None:
    """Return why the server did not take a row, if that is what the error says, and it may take others."""
    return reason_of(error) if isinstance(error, pymysql.MySQLError) and code_of(error) in _REFUSALS else None


def quarantine_table(edge: EdgeName, connection: Connection) -> QuarantineTable:
    """Return what keeps the edge's quarantine in the database."""
    return QuarantineTable(edge, connection.rows, mark="%s")


class MysqlTable:
    """Implements group_apply.Table: few rows by statements, many through a temporary table."""

    def __init__(self, connection: Connection, bulk: Bulk, plan: Plan) -> None:
        self._connection = connection
        self._bulk = bulk
        self.plan = plan
        self.key = plan.key
        self.name = plan.table

    def delete(self, rows: Sequence[Row]) -> int:
        """Delete rows by their key."""
        plan = self.plan
        if len(rows) < FEW:
            return self._bulk.run(plan.delete_few(rows), plan.table)
        key = plan.key or ()
        self._fill_batch(plan.create_batch(key), plan.batch(key), rows)
        return self._connection.run(plan.delete_batch)

    def update(self, present: tuple[int, ...], rows: Sequence[Row]) -> int:
        """Update rows by their key."""
        plan = self.plan
        if len(rows) < FEW:
            return sum(self._bulk.run(plan.update_one(row), plan.table) for row in rows)
        columns = plan.update_columns(present)
        self._fill_batch(plan.create_batch(columns), plan.batch(columns), rows)
        return self._connection.run(plan.update_batch(columns, self._dense(len(rows))))

    def _dense(self, rows: int) -> str:
        """The condition for the range of keys that the temporary table holds, if it holds at least half of the target's there."""
        plan = self.plan
        if not (key_range := plan.key_range()):
            return ""
        ((low, high),) = self._connection.rows(key_range)
        within = plan.within(low, high)
        ((found,),) = self._connection.rows(plan.count_within(within, 2 * rows + 1))
        return within if found <= 2 * rows else ""

    def _fill_batch(self, create: str, fields: Fields, rows: Sequence[Row]) -> None:
        """Make the temporary table anew: to empty it would be a commit, or slow."""
        self._connection.run(f"DROP TEMPORARY TABLE IF EXISTS {BATCH}")
        self._connection.run(create)
        self._bulk.fill(BATCH, fields, rows)

    def insert(self, rows: Sequence[Row]) -> int:
        """Insert whole rows."""
        return self._bulk.fill(self.plan.table, self.plan.rows, rows)

    def write(self, change: Change) -> int:
        """Write one change of one row."""
        return self._bulk.run(self.plan.one(change), self.plan.table)

    def empty(self) -> None:
        """Delete all rows: TRUNCATE would be a commit."""
        self._connection.run(f"DELETE FROM {self.plan.table}")

    def describe(self, change: Change) -> str:
        """Return the row's key, or its first columns."""
        return self.plan.describe(change)


class MysqlTables:
    """The tables of one connection; keeps a plan for each relation."""

    def __init__(self, connection: Connection, server: Server, node: str, names: Names, replacements: Replacements) -> None:
        self._connection = connection
        self._server = server
        self._bulk = Bulk(connection, server, replacements)
        self._node = node
        self._names = names
        self._replacements = replacements
        self._known: dict[Relation, tuple[MysqlTable, float]] = {}
        self._tables: set[TableName] = set()

    def of(self, relation: Relation) -> MysqlTable:
        """Return the table of a relation. Raises SchemaError, pymysql.MySQLError."""
        table, until = self._known.get(relation, (None, 0.0))
        return table if table is not None and time.monotonic() < until else self._read(relation, table)

    def _read(self, relation: Relation, before: MysqlTable | None = None) -> MysqlTable:
        self._tables.add(relation.table)
        self._names.refuse_clashes(self._tables)
        target, table = read_target(self._connection, self._node, self._names, relation.table), before
        if table is None or table.plan.target != target:
            plan = Plan(relation, target, self._names, self._server.engine, self._replacements)
            table = MysqlTable(self._connection, self._bulk, plan)
        self._known[relation] = table, time.monotonic() + LOOK_SECONDS
        return table

    def explain(self, error: Error, relations: Iterable[Relation]) -> None:
        """Raise SchemaError if the error comes of a table of theirs that was altered."""
        if code_of(error) in _ALTERED:
            for relation in relations:
                self._read(relation)
