"""Statements sent to PostgreSQL ahead of the answers to those before them, through libpq itself.

psycopg's own pipeline mode costs about 20 µs of Python a statement, this about 1; thousands of small transactions a second need
that. Statements are prepared when they are first sent. What goes wrong is known at the end only: the server skips everything after
the first error, up to the end of the run; whole transactions before it are committed.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import re
import select
from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg import pq
from psycopg.errors import lookup

from streamer.session import Connection

PUMP_EVERY: Final = 64
"""Statements after which the server's answers are taken in: it stops reading when nobody reads what it writes."""
_PLACEHOLDER: Final = re.compile(r"%[s%]")
_GOOD: Final = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})


class Pipeline:
    """Runs of prepared statements on one connection. Placeholders are psycopg's %s, literal % are doubled."""

    def __init__(self, connection: Connection) -> None:
        self._pg = connection.pgconn
        self._names: dict[str, bytes] = {}
        self._new: list[str] = []
        self._made = 0
        self._sent = 0

    def send(self, statement: str, values: Sequence[str | None] = ()) -> None:
        """Send the statement; the first one begins a run. Raises psycopg.OperationalError if the connection is gone."""
        pg = self._pg
        if not self._sent:
            pg.enter_pipeline_mode()
        name = self._names.get(statement)
        if name is None:
            name = self._prepare(statement)
        pg.send_query_prepared(name, [None if v is None else v.encode() for v in values])
        self._sent += 1
        if self._sent % PUMP_EVERY == 0:
            self._pump()

    def _prepare(self, statement: str) -> bytes:
        self._made += 1
        name = self._names[statement] = b"streamer_%d" % self._made
        self._pg.send_prepare(name, _numbered(statement).encode())
        self._new.append(statement)
        return name

    def finish(self) -> list[tuple[bytes | None, ...]]:
        """End the run and return the first row of every statement that returned one, in order.

        Raises the psycopg.Error of the first statement that failed.
        """
        pg = self._pg
        pg.pipeline_sync()
        self._pump()
        rows: list[tuple[bytes | None, ...]] = []
        error: psycopg.Error | None = None
        try:
            while (result := self._next()).status != pq.ExecStatus.PIPELINE_SYNC:
                if result.status not in _GOOD:
                    error = error or _error(result)
                elif result.ntuples:
                    rows.append(tuple(result.get_value(0, i) for i in range(result.nfields)))
        finally:
            self._sent = 0
            if pg.status == pq.ConnStatus.OK:
                pg.exit_pipeline_mode()
        if error is not None:
            self._forget(error)
            raise error
        self._new.clear()
        return rows

    def _forget(self, error: psycopg.Error) -> None:
        """Forget what the server may not have prepared: all if it has lost our names, else what came new with this run."""
        if isinstance(error, psycopg.errors.InvalidSqlStatementName):
            self._names.clear()
        for statement in self._new:
            self._names.pop(statement, None)
        self._new.clear()

    def _next(self) -> pq.abc.PGresult:
        """The next answer; each is followed by an empty one."""
        while True:
            while self._pg.is_busy():
                self._wait(select.POLLIN)
                self._pg.consume_input()
            if (result := self._pg.get_result()) is not None:
                return result
            if self._pg.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError(self._pg.error_message.decode("utf-8", "replace"))

    def _pump(self) -> None:
        """Hand over what is to be sent, taking in what comes meanwhile."""
        while self._pg.flush():
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._pg.consume_input()

    def _wait(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._pg.socket, events)
        return poll.poll()[0][1]


def undo(connection: Connection, statement: str) -> None:
    """Execute a ROLLBACK, of the transaction or to a savepoint. Raises psycopg.Error.

    After its own psycopg would deallocate all prepared statements, though they are not part of the transaction.
    """
    result = connection.pgconn.exec_(statement.encode())
    if result.status not in _GOOD:
        raise _error(result)


def _error(result: pq.abc.PGresult) -> psycopg.Error:
    """The error as psycopg raises it."""
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    message = result.error_message.decode("utf-8", "replace")
    try:
        kind = lookup(state.decode()) if state else psycopg.OperationalError
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(message, info=result)


def _numbered(statement: str) -> str:
    """The statement with the server's own placeholders, $1 and so on."""
    number = 0

    def numbered(match: re.Match[str]) -> str:
        nonlocal number
        if match[0] == "%%":
            return "%"
        number += 1
        return f"${number}"

    return _PLACEHOLDER.sub(numbered, statement)
