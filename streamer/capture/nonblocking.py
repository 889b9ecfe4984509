"""Statements on a connection to PostgreSQL that never make their caller wait: generators that yield while the server is at work.

A batch may take the server minutes, and its reader has to look after other things meanwhile: being told to stop, confirming. So
these are steps; whoever drives them calls `wait` in between, for as long as it likes. Everything goes by the simple protocol,
which servers of any age speak. The trap: libpq must only be asked to read when there is something to read; a blocking call holds
the GIL and stops the writers.

https://www.postgresql.org/docs/current/libpq-async.html
"""

from __future__ import annotations

import select
from collections.abc import Generator

from psycopg import OperationalError, errors, pq
from psycopg.pq.abc import PGresult

from streamer.session import Connection


class Statements:
    """Runs one statement after the other; each generator must be exhausted before the next begins. Raises psycopg.Error."""

    def __init__(self, connection: Connection) -> None:
        self._pq = connection.pgconn
        self._waiting = connection.waiting

    def wait(self, seconds: float | None = None) -> None:
        """Wait until there may be more to do, or for so long."""
        if self._pq.transaction_status == pq.TransactionStatus.ACTIVE:
            self._waiting.begin()
        if select.select([self._pq.socket], [], [], seconds)[0]:
            self._waiting.end()

    def run(self, text: str) -> Generator[None, None, list[PGresult]]:
        """Run statements, parted by semicolons; return their results."""
        self._pq.send_query(text.encode())
        results = []
        while (result := (yield from self._result())) is not None:
            results.append(result)
        return results

    def copy(self, text: str, block: int, row: int) -> Generator[bytes | None]:
        """Run statements of which the last is a COPY TO STDOUT; yield its rows in blocks as soon as one has `block` bytes, each row
        counting `row` bytes more than it has; None while there is nothing to take."""
        self._pq.send_query(text.encode())
        yield from self.copied(block, row)

    def copied(self, block: int, row: int, taken: int = 0) -> Generator[bytes | None]:
        """Yield what `copy` does of statements that were sent. Of a COPY whose rows were `taken` by other means, see that they were
        all."""
        told: int | None = 0
        while (result := (yield from self._result())) is not None and result.status != pq.ExecStatus.COPY_OUT:
            told = result.command_tuples
        if result is None:
            if told != taken:
                raise OperationalError(f"the server has sent {told} rows, of which {taken} were taken")
            return
        rows: list[bytes] = []
        size = 0
        while (got := self._pq.get_copy_data(1))[0] >= 0:
            length, data = got
            if length == 0:
                yield None
                self.take_in()
                continue
            rows.append(bytes(data))
            size += length + row
            if size >= block:
                yield b"".join(rows)
                rows.clear()
                size = 0
        while (yield from self._result()) is not None:
            pass
        if rows:
            yield b"".join(rows)

    def take_in(self) -> bool:
        """Take in what the server has sent, if anything; return whether a notification has come."""
        if select.select([self._pq.socket], [], [], 0)[0]:
            try:
                self._pq.consume_input()
            except OperationalError:
                self._waiting.explain()
                raise
        notified = False
        while self._pq.notifies() is not None:
            notified = True
        return notified

    def _result(self) -> Generator[None, None, PGresult | None]:
        """The next result; None when the statements are through. An error is raised as soon as the next statement may be sent."""
        result = yield from self._next()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            while (yield from self._next()) is not None:
                pass
            raise errors.error_from_result(result)
        return result

    def _next(self) -> Generator[None, None, PGresult | None]:
        while self._pq.is_busy():
            yield
            self.take_in()
        return self._pq.get_result()
