"""Statements that travel to a PostgreSQL target together and are answered together, on `psycopg.pq`.

psycopg has pipelines of its own, which send each statement by itself, with a hundred calls of Python functions: a transaction of
one row took more than twice the time. Here statements wait in a list until `sync`, so that the connection may be asked for
something else meanwhile, like what the catalog says of a table.

The traps: behind an error the server skips everything up to the end of the pipeline, so that a statement is prepared only when the
server has said so. libpq takes a text value for a string of C, which ends with a NUL. And after a ROLLBACK or DROP that it has sent
itself, psycopg deallocates all prepared statements, if it has any, ours too: so `TargetSession.undo` sends it, or the pipeline.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Final, NamedTuple

import psycopg
from psycopg import capabilities
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

from streamer.model import Value
from streamer.session import Connection

PREPARED: Final = 500
"""Statements that stay prepared, the last used: some for each of a hundred tables, at about 30 kB of the server's memory each."""
AT_ONCE: Final = 500
"""Statements sent before their answers are read."""

_PLACEHOLDER: Final = re.compile(r"%[s%]")
_NUMBERS: Final = count()  # of prepared statements: a connection may have had another pipeline


@dataclass(slots=True)
class Answer:
    """What a statement has done; known once the pipeline was synced."""

    #: the rows that it has found
    rowcount: int = 0
    #: the first value of the first row
    cell: str | None = None

    def read(self, result: PGresult) -> None:
        """Keep what matters of the server's answer, which takes some kilobytes."""
        self.rowcount = result.command_tuples or 0
        if result.ntuples and (value := result.get_value(0, 0)) is not None:
            self.cell = value.decode()


class _Waiting(NamedTuple):
    """What is to be sent."""

    statement: str
    #: None where the statement has no placeholders
    values: Sequence[bytes | None] | None
    prepare: bool
    answer: Answer


class _Sent(NamedTuple):
    """What the server will answer."""

    answer: Answer
    #: if that prepares a statement: which one, and by what name
    statement: str = ""
    name: bytes = b""


class Pipeline:
    """The statements of one connection, and those that stay prepared there."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._pg = connection.pgconn
        self._waiting: list[_Waiting] = []
        #: the prepared statements and their names on the server, the last used last
        self._names: dict[str, bytes] = {}

    def add(self, statement: str, values: Sequence[Value] | None = None, *, prepare: bool = True) -> Answer:
        """Add a statement. With values, even none, its placeholders are psycopg's, and literal % are doubled; it is prepared,
        unless the server is to plan it anew each time.

        Raises psycopg.Error: DataError if a value cannot be sent, or what `sync` does, where much was waiting.
        """
        answer = Answer()
        if values is None:
            self._waiting.append(_Waiting(statement, None, False, answer))
        else:
            self._waiting.append(_Waiting(_numbered(statement), self._encoded(values), prepare, answer))
        if len(self._waiting) >= AT_ONCE:
            self.sync()
        return answer

    def _encoded(self, values: Sequence[Value]) -> Sequence[bytes | None]:
        """The values as libpq takes them. Before one is refused here, the server is brought to where it would refuse it."""
        try:
            encoded = [None if value is None else value.encode() for value in values]  # type: ignore[union-attr]
        except AttributeError:
            self.sync()
            raise psycopg.ProgrammingError("a value that the source has not sent cannot be written") from None
        if b"\0" in b"".join([value for value in encoded if value]):
            self.sync()
            raise psycopg.DataError("a text of PostgreSQL cannot hold a NUL (0x00)")
        return encoded

    def clear(self) -> None:
        """Forget what was added and not sent."""
        self._waiting = []

    def sync(self) -> None:
        """Send what was added, and wait until all is answered. Raises psycopg.Error: the first refusal; what came behind it was not
        looked at."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self._pg.enter_pipeline_mode()
        try:
            self._take_in(self._send(waiting))
        except psycopg.OperationalError:
            self.connection.waiting.explain()
            raise
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._pg.status == ConnStatus.OK:
            try:
                self._pg.exit_pipeline_mode()
            except psycopg.OperationalError:  # something could not be sent; what was is never answered now
                self.connection.close()

    def _send(self, waiting: Iterable[_Waiting]) -> list[_Sent]:
        sent: list[_Sent] = []
        while len(self._names) > PREPARED:  # before anything else: a commit must not be followed by what might be refused
            self._deallocate(self._names.pop(next(iter(self._names))))
            sent.append(_Sent(Answer()))
        coming: dict[str, bytes] = {}
        for statement, values, prepare, answer in waiting:
            if prepare:
                name = self._used(statement) or coming.get(statement)
                if name is None:
                    name = coming[statement] = f"streamer_{next(_NUMBERS)}".encode()
                    self._pg.send_prepare(name, statement.encode())
                    sent.append(_Sent(Answer(), statement, name))
                self._pg.send_query_prepared(name, values)
            else:
                self._pg.send_query_params(statement.encode(), values)
            sent.append(_Sent(answer))
        self._pg.pipeline_sync()
        self.connection.send_all()
        return sent

    def _used(self, statement: str) -> bytes | None:
        """The name of a prepared statement, which is now the last used."""
        name = self._names.pop(statement, None)
        if name is not None:
            self._names[statement] = name
        return name

    def _deallocate(self, name: bytes) -> None:
        if capabilities.has_send_close_prepared():
            self._pg.send_close_prepared(name)
        else:
            self._pg.send_query_params(b"DEALLOCATE " + name, None)

    def _take_in(self, sent: Iterable[_Sent]) -> None:
        refused: PGresult | None = None
        for answer, statement, name in sent:
            result = self._next()
            answer.read(result)
            self.connection.next_result()  # none: the end of this answer
            if result.status == ExecStatus.FATAL_ERROR:
                refused = refused or result
            elif statement and result.status == ExecStatus.COMMAND_OK:
                self._names[statement] = name
        self._next()  # the end of the pipeline
        if refused is not None:
            raise error_from_result(refused)

    def _next(self) -> PGresult:
        result = self.connection.next_result()
        if result is None:
            raise psycopg.OperationalError("the connection is lost")
        return result


@lru_cache(maxsize=4 * PREPARED)
def _numbered(statement: str) -> str:
    """The statement with placeholders as the server has them."""
    numbers = count(1)
    return _PLACEHOLDER.sub(lambda match: "%" if match[0] == "%%" else f"${next(numbers)}", statement)
