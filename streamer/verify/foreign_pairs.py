"""A pair of tables of which the target's is MySQL's, MariaDB's or SQLite's: their rows are streamed, and hashed here."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from streamer.model import EdgeName, OnUnrepresentable, TableName
from streamer.node_config import MysqlAddress
from streamer.session import Connection
from streamer.sinks import mysql_ddl, mysql_session, mysql_table, mysql_values, sqlite_ddl, sqlite_values
from streamer.verify.comparison import Pair
from streamer.verify.foreign_values import expected, mysql_alike, mysql_expression, sqlite_alike
from streamer.verify.mysql_rows import MysqlScan
from streamer.verify.plan import Plan
from streamer.verify.sqlite_rows import SqliteScan
from streamer.verify.streamed_pairs import streamed_pair, target_make
from streamer.verify.streamed_rows import StreamedRows

_INTEGERS: Final = ("smallint", "int", "bigint")


class MysqlTarget:
    """The database at the end of an edge; `policy` tells what the sink does with values that it cannot hold."""

    def __init__(
        self,
        edge: EdgeName,
        source: Connection,
        policy: Callable[[TableName], OnUnrepresentable],
        target: mysql_session.Connection,
        names: mysql_ddl.Names,
        address: MysqlAddress,
    ) -> None:
        self._edge = edge
        self._source = source
        self._policy = policy
        self._target = target
        self._names = names
        self._address = address

    def compared(self, plan: Plan) -> Pair:
        """Return how a table is compared."""
        with mysql_session.failing(self._edge.target, self._address, "run streamer verify again"):
            there = mysql_table.read_target(self._target, self._edge.target, self._names, plan.target)
        mysql_table.require_columns(there, self._names, plan.target, plan.names)
        columns = [c for name in plan.names if (c := there.column(name)) is not None]
        policy = self._policy(plan.table.table)
        values = [
            expected(mysql_values.converter(c.type_oid, other), mysql_alike(other), policy)
            for c, other in zip(plan.columns, columns, strict=True)
        ]
        folded = [mysql_ddl.fold_case(mysql_ddl.safe_name(plan.called(name))) for name in plan.key]
        first = plan.first if frozenset(folded) in there.unique else None
        ranged = first if first is not None and there.columns[folded[0]].data_type in _INTEGERS else None
        scan = MysqlScan(
            self._edge.target,
            self._address,
            self._target,
            self._names.sql(plan.target),
            [mysql_expression(c) for c in columns],
            there.columns[folded[0]].name if ranged is not None else "",
        )
        target = StreamedRows(scan, target_make(plan, list(map(mysql_alike, columns))))
        return streamed_pair(self._edge, self._source, plan, values, target, ranged)


class SqliteTarget:
    """The file at the end of an edge; `policy` tells what the sink does with values that it cannot hold."""

    def __init__(
        self, edge: EdgeName, source: Connection, policy: Callable[[TableName], OnUnrepresentable], target: sqlite3.Connection
    ) -> None:
        self._edge = edge
        self._source = source
        self._policy = policy
        self._target = target

    def compared(self, plan: Plan) -> Pair:
        """Return how a table is compared."""
        there = sqlite_ddl.read_target(self._target, self._edge.target, plan.target)
        for name, column in zip(plan.names, plan.columns, strict=True):
            if sqlite_ddl.fold_case(name) not in there.columns:
                raise sqlite_ddl.missing_column(plan.target, name, column.type_oid, strict=there.strict)
        alike = [sqlite_alike(there.type_of(name), strict=there.strict) for name in plan.names]
        policy = self._policy(plan.table.table)
        values = [
            expected(sqlite_values.conversion(c.type_oid, there.type_of(name), strict=there.strict), one, policy)
            for c, name, one in zip(plan.columns, plan.names, alike, strict=True)
        ]
        folded = [sqlite_ddl.fold_case(plan.called(name)) for name in plan.key]
        first = plan.first if frozenset(folded) in there.keys else None
        ranged = first if first is not None and there.types[folded[0]] == "INTEGER" else None
        called = plan.called(ranged.name) if ranged is not None else ""
        scan = SqliteScan(self._edge.target, self._target, sqlite_ddl.target_name(plan.target), plan.names, called)
        target = StreamedRows(scan, target_make(plan, alike))
        return streamed_pair(self._edge, self._source, plan, values, target, ranged)
