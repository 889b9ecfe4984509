"""Rows of a table of MySQL or MariaDB, streamed, as one side of a comparison.

The trap: the client library reads a whole result into memory unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from pymysql.cursors import SSCursor

from streamer.node_config import MysqlAddress
from streamer.sinks.mysql_ddl import quote
from streamer.sinks.mysql_session import Connection, connect, failing
from streamer.verify.parts import Part

_ROWS: Final = 1000
_AGAIN: Final = "when that is cured, run streamer verify again"


class MysqlScan:
    """Implements streamed_rows.Scan; `expressions` are the columns, `ranged` the one that ranges are cut by."""

    def __init__(
        self, node: str, address: MysqlAddress, connection: Connection, table: str, expressions: Sequence[str], ranged: str
    ) -> None:
        self._node = node
        self._address = address
        self._connection = connection
        self._query = f"SELECT {', '.join(expressions)} FROM {table}"
        self._ranged = quote(ranged)

    def rows(self, part: Part) -> Iterator[tuple[str, Sequence[Any]]]:
        """Give the rows of a range."""
        with failing(self._node, self._address, _AGAIN), closing(self._connection.cursor(SSCursor)) as cursor:
            cursor.execute(self._query + condition(part, self._ranged))
            while rows := cursor.fetchmany(_ROWS):
                yield from (("", row) for row in rows)

    def cancel(self) -> None:
        """Have the server break off what the connection asks, over another one."""
        with suppress(Exception), closing(connect(self._node, self._address)) as other:
            other.run(f"KILL QUERY {self._connection.thread}")


def condition(part: Part, ranged: str) -> str:
    """Return WHERE for a range of integers, as MySQL and SQLite have it."""
    terms = [f"{ranged} {sign} {int(end)}" for sign, end in ((">", part.low), ("<=", part.high)) if end is not None]
    return f" WHERE {' AND '.join(terms)}" if terms else ""
