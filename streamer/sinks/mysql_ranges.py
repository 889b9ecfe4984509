"""What MySQL or MariaDB is asked for tables that are copied in ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from streamer.model import LSN, EdgeName, TableName
from streamer.sinks.mysql_ddl import Names, fold_case, quote, safe_name
from streamer.sinks.mysql_session import Connection
from streamer.sinks.mysql_table import read_target

_UNIQUES: Final = (
    "SELECT count(DISTINCT index_name) FROM information_schema.statistics WHERE table_schema = %s AND table_name = %s "
    "AND non_unique = 0"
)


class MysqlEngine:
    """Implements ranges.Engine; `opened` gives a transaction, `recorded` writes a table's own record on a connection."""

    def __init__(
        self,
        edge: EdgeName,
        names: Names,
        opened: Callable[[], AbstractContextManager[Connection]],
        recorded: Callable[[Connection, TableName, LSN, int | None], None],
    ) -> None:
        self._node = edge.target
        self._names = names
        self.transaction = opened
        self.record = recorded

    def execute(self, connection: Connection, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement; return the rows of a query."""
        return connection.rows(statement.replace("?", "%s"), tuple(parameters)) if parameters else connection.rows(statement)

    def place(self, table: TableName) -> str:
        """The table's name in SQL."""
        return self._names.sql(table)

    def column(self, connection: Connection, table: TableName, column: str) -> str | None:
        """The column's name in SQL, if it belongs to a key."""
        target = read_target(connection, self._node, self._names, table)
        return quote(safe_name(column)) if any(fold_case(safe_name(column)) in key for key in target.keys) else None

    def uniques(self, connection: Connection, table: TableName) -> int:
        """How many unique indexes there are."""
        ((number,),) = connection.rows(_UNIQUES, self._names.of(table))
        return int(number)
