"""Which rows of changes fulfil a condition: asked of the source itself, so that it means the same as in a query there.

The values of the columns that a condition may use travel as arrays of text, one a column, are cast to the columns' types and laid
out as a table of the same name; what comes back is a string of 0 and 1. Rows with equal values are the caller's to ask about once.

The trap: types are told by number, as the change had them; `format_type` without a modifier would make `character(1)` of
`character(5)`, with the modifier -1 it gives the type that takes any length.

https://www.postgresql.org/docs/current/functions-array.html#ARRAY-FUNCTIONS-TABLE
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql

from streamer.errors import SourceError
from streamer.model import Column, TableName
from streamer.ports import Question
from streamer.session import Connection, connect, connect_error, reason_of

_NUMBER: Final = "streamer row"
"""What the number of a row is called in the query; no column should be called that."""
_ROWS: Final = 20_000
"""Rows asked about in one statement: bounds the memory of its arrays."""


class ServerFilter:
    """Implements ports.RowFilter with a connection of its own to the source named `node`, made when the first question comes."""

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._url = url
        self._connection: Connection | None = None
        self._queries: dict[tuple[TableName, str, tuple[Column, ...]], sql.Composed] = {}

    def answer(self, questions: Sequence[Question]) -> Sequence[Sequence[bool]]:
        """Ask about all rows, in one round trip unless there are very many."""
        if self._connection is None:
            self._connection = connect(self._node, self._url, application="streamer where")
            with condition_errors(self._node):
                self._connection.execute("SET default_transaction_read_only = on")
        parts = [(question, at) for question in questions for at in range(0, len(question.rows), _ROWS)]
        answers = self._ask_at_once(self._connection, parts) if len(parts) > 1 else None
        bits = iter(answers if answers is not None else [self._ask(self._connection, *part) for part in parts])
        return [[bit == "1" for _ in range(0, len(q.rows), _ROWS) for bit in next(bits)] for q in questions]

    def _ask_at_once(self, connection: Connection, parts: Sequence[tuple[Question, int]]) -> list[str] | None:
        """Send all questions before the first answer is read; None if one fails: which one shows when they are asked singly."""
        statements = [(self._query(connection, question), _arrays(question, at)) for question, at in parts]
        try:
            with connection.pipeline():
                cursors = [connection.execute(query, arrays, prepare=True) for query, arrays in statements]
            return [_told(cursor) for cursor in cursors]
        except psycopg.Error:
            return None

    def _ask(self, connection: Connection, question: Question, at: int) -> str:
        query = self._query(connection, question)
        with condition_errors(self._node, question.table, question.where):
            return _told(connection.execute(query, _arrays(question, at), prepare=True))

    def _query(self, connection: Connection, question: Question) -> sql.Composed:
        known = question.table, question.where, question.columns
        if known not in self._queries:
            with condition_errors(self._node):
                self._queries[known] = _query(
                    connection, question.table, question.where.replace("%", "%%"), question.columns, sql.Placeholder()
                )
        return self._queries[known]

    def cancel(self) -> None:
        """Have the server break off what it is asked."""
        if (connection := self._connection) is not None:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=5)

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        self._queries.clear()  # types may have other names when we are back
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def trial(connection: Connection, table: TableName, where: str, columns: Sequence[Column]) -> sql.Composed:
    """Return the query that asks about no rows at all: the server says of it whether the condition is one. Raises psycopg.Error."""
    return _query(connection, table, where, tuple(columns), sql.SQL("'{}'"))


@contextmanager
def condition_errors(node: str, table: TableName | None = None, where: str = "") -> Iterator[None]:
    """Turn errors of the server inside into a SourceError that names the condition; those of the connection, or where there is no
    condition, into a ConnectError."""
    try:
        yield
    except psycopg.Error as error:
        if table is None or not where or error.sqlstate is None or isinstance(error, psycopg.OperationalError):
            raise connect_error(node, error) from error
        raise refused(node, table, where, error) from error


def refused(node: str, table: TableName, where: str, error: psycopg.Error) -> SourceError:
    """Return the server's no to a condition, or to its evaluation for some row."""
    return SourceError(
        f'table "{table}" on "{node}": where = "{where}" fails: {reason_of(error)}',
        "correct the condition in the config, and start streamer run again",
    )


def _query(
    connection: Connection, table: TableName, where: str, columns: tuple[Column, ...], array: sql.Composable
) -> sql.Composed:
    """The query, with `array` for each array of values; without columns there is one all the same, to count the rows by."""
    number, places = sql.Identifier(_NUMBER), [sql.Identifier(f"c{i}") for i in range(max(len(columns), 1))]
    chosen = [
        sql.SQL("{}::{} AS {}").format(place, sql.SQL(kind), sql.Identifier(column.name))
        for place, kind, column in zip(places, _type_names(connection, columns), columns, strict=False)
    ]
    return sql.SQL(
        "SELECT string_agg(CASE WHEN (\n{where}\n) THEN '1' ELSE '0' END, '' ORDER BY {number}) FROM "
        "(SELECT {chosen} FROM unnest({arrays}) WITH ORDINALITY AS given ({places})) AS {table}"
    ).format(
        where=sql.SQL(where),
        number=number,
        chosen=sql.SQL(", ").join([*chosen, number]),
        arrays=sql.SQL(", ").join([sql.SQL("{}::text[]").format(array)] * len(places)),
        places=sql.SQL(", ").join([*places, number]),
        table=sql.Identifier(table.name),
    )


def _type_names(connection: Connection, columns: Sequence[Column]) -> list[str]:
    query = "SELECT format_type(oid, -1) FROM unnest(%s::bigint[]) WITH ORDINALITY AS given (oid, n) ORDER BY n"
    return [name for (name,) in connection.execute(query, [[c.type_oid for c in columns]])]


def _arrays(question: Question, at: int) -> list[Any]:
    rows = question.rows[at : at + _ROWS]
    return [list(values) for values in zip(*rows, strict=True)] if question.columns else [[None] * len(rows)]


def _told(cursor: psycopg.Cursor[Any]) -> str:
    (bits,) = cursor.fetchone() or ("",)
    return bits or ""
