"""A statement that an SQLite connection executes for many rows: for as many as possible at once.

VALUES takes many rows in one statement, so that the GIL is let go once for all of them. With one execution a row it is let go and
asked for again at every row, and a busy reader thread makes each of these wait for a switch interval (measured: 2,000 rows/s
instead of 700,000). It is faster in a thread alone as well.

The trap: the connection keeps prepared statements, and one of many rows takes memory for each of its parameters. So there are
statements of a few sizes only, of which the largest has a bound.

https://www.sqlite.org/lang_select.html#values_clause
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from streamer.model import Value
from streamer.sinks.sqlite_columns import Bind

_PARAMETERS: Final = 8_192
"""How many the largest statement has; each takes some hundred bytes. SQLite's own limit may be lower."""
_FEWEST: Final = 8
"""Rows from which on a statement for several of them pays."""


class Batch:
    """A statement with the parameters of one row, `each`; `many` makes one for several rows of the text between VALUES and its end.

    `bind` makes the `width` parameters of a row; None if the row is them already. `accepts` tells of a statement for several rows
    whether it is carried out as it should be.
    """

    def __init__(
        self,
        each: str,
        many: Callable[[str], str],
        width: int,
        bind: Bind | None,
        accepts: Callable[[str, int], bool] = lambda statement, parameters: True,
    ) -> None:
        self.each = each
        self.bind = bind
        self._many = many
        self._width = width
        self._accepts = accepts
        self._at_once: dict[int, str | None] = {}

    def run(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Value]]) -> int:
        """Execute it for the rows; return how many rows of the table it wrote. Raises sqlite3.Error."""
        bound: Sequence[Any] = rows if self.bind is None else list(map(self.bind, rows))
        written = place = 0
        for size in self._sizes(connection):
            while len(bound) - place >= size and (statement := self.at_once(size)) is not None:
                parameters = list(chain.from_iterable(bound[place : place + size]))
                written += connection.execute(statement, parameters).rowcount
                place += size
        if place < len(bound):
            written += connection.executemany(self.each, bound[place:]).rowcount
        return written

    def _sizes(self, connection: sqlite3.Connection) -> Iterator[int]:
        """How many rows statements have, the largest first."""
        size = min(_PARAMETERS, connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)) // self._width
        while size >= _FEWEST:
            yield size
            size //= 4

    def at_once(self, size: int) -> str | None:
        """Return the statement for so many rows, None if there is none that does not take longer than one for each."""
        if size not in self._at_once:
            row = f"({', '.join('?' * self._width)})"
            statement = self._many(", ".join([row] * size))
            self._at_once[size] = statement if self._accepts(statement, size * self._width) else None
        return self._at_once[size]
