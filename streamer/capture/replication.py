"""The streaming replication protocol on `psycopg.pq`: frames in, standby status updates out. It knows nothing of plugins.

psycopg has no replication cursor; libpq's COPY_BOTH is all that is needed. Everything is non-blocking with `select`: a blocking
libpq call would hold the GIL and stop the writers. The trap: `get_copy_data` must be drained until it gives nothing before
more is read from the socket, else libpq's buffer grows without bound.

https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import fcntl
import select
import struct
import termios
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import psycopg
from psycopg import pq

from streamer.errors import ConnectError, HeldBackError, StreamerError
from streamer.model import LSN, POSTGRES_EPOCH
from streamer.session import Connection

REPORT_WHEN_MOVED: Final = 0.1
"""Seconds between status updates while the confirmed position moves."""
REPORT_ALWAYS: Final = 5.0
"""Seconds after which one is sent in any case."""
MUCH: Final = 16 << 10
"""Bytes that are more than a few small transactions; as many as libpq reads at once."""
ASK_SECONDS: Final = 10.0
"""How long the server may be quiet before it is asked for a sign of life."""

_STATUS: Final = struct.Struct(">cQQQqB")
_KEEPALIVE: Final = struct.Struct(">xQqB")
_WAL_HEADER: Final = 25
"""Bytes before the payload: 'w', start, end, time."""
_EPOCH: Final = POSTGRES_EPOCH.timestamp()


class Keepalive(NamedTuple):
    """The server has sent everything up to `position`; `reply` asks to be answered at once."""

    position: LSN
    reply: bool


class ReplicationStream:
    """An open COPY_BOTH stream of a slot. `explain` turns a server's complaint into an error for people."""

    def __init__(
        self,
        connection: Connection,
        slot: str,
        position: LSN,
        options: Mapping[str, str],
        explain: Callable[[str, str], StreamerError],
    ) -> None:
        self._connection = connection
        self._pq = connection.pgconn
        self._waiting = connection.waiting
        self._explain = explain
        # not `position`: an edge that is away may need what lies before it; the server takes 0 for nothing
        self._confirmed = LSN(0)
        self._received = position
        self._reported = LSN(0)
        self._reported_at = 0.0
        self._reply_due = True
        self._heard_at = time.monotonic()
        self._interval = REPORT_ALWAYS
        self._broken: StreamerError | None = None
        #: why the server sends nothing for now, as far as it tells
        self.obstacle: HeldBackError | None = None
        connection.add_notice_handler(self._heed)
        listed = ", ".join(f"{_quote_name(name)} {_quote_text(value)}" for name, value in options.items())
        self._start(f"START_REPLICATION SLOT {_quote_name(slot)} LOGICAL {position} ({listed})")

    def _start(self, command: str) -> None:
        self._pq.send_query(command.encode())
        self._flush()
        with self._waiting.noted():
            while self._pq.is_busy():
                self._wait_readable(None)
                self._pq.consume_input()
        result = self._pq.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise self._explain(*_complaint(result, self._pq))

    def _heed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Take a warning that changes are being left out for an error; the server itself would go on."""
        error = self._explain(notice.message_primary or "", f"W{notice.sqlstate}")
        if isinstance(error, HeldBackError):
            self.obstacle = error
        elif error.permanent:
            self._broken = error

    def report_every(self, seconds: float) -> None:
        """Show the server at least this often that we live, also when there is nothing to confirm."""
        self._interval = min(seconds, REPORT_ALWAYS)

    def frames(self, limit: int) -> Iterator[bytes | Keepalive]:
        """Yield what has come: payloads of the plugin and keepalives, until there is not much more or `limit` bytes have come.

        Raises what `explain` makes of the server's complaint, ConnectError if the stream has ended.
        """
        get = self._pq.get_copy_data
        while limit > 0:
            length, data = get(1)
            if self._broken is not None:
                raise self._broken
            if length < 0:
                raise self._ended()
            if length == 0:
                if not self.has_much:
                    return
                self._take_in()
                limit -= MUCH  # for one message that takes long to come
                continue
            limit -= length
            # bytes(): the memory is libpq's, and gone with the next call
            if data[0] == 119:  # w
                self.obstacle = None
                yield bytes(data[_WAL_HEADER:])
            elif data[0] == 107:  # k
                position, _, reply = _KEEPALIVE.unpack(data)
                if position > self._received:
                    self.obstacle = None
                self._received = max(self._received, LSN(position))
                self._reply_due = self._reply_due or bool(reply)
                yield Keepalive(LSN(position), bool(reply))

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the server to send something, and take it in."""
        if self._wait_readable(timeout):
            self._take_in()
        elif self._is_quiet:
            self._waiting.begin()

    def _take_in(self) -> None:
        """Have libpq read what has come."""
        try:
            self._pq.consume_input()
        except psycopg.OperationalError as error:
            raise self._explain(self._waiting.reason if self._waiting.given_up else str(error), "") from None
        self._heard_at = time.monotonic()
        self._waiting.end()

    @property
    def _is_quiet(self) -> bool:
        """Whether the server owes us a sign of life."""
        return time.monotonic() - self._heard_at > ASK_SECONDS

    @property
    def has_much(self) -> bool:
        """Whether the server has sent more than a few small transactions that were not taken in yet."""
        size = array("i", [0])
        fcntl.ioctl(self._pq.socket, termios.FIONREAD, size)
        return size[0] >= MUCH

    @property
    def confirmed(self) -> LSN:
        """What the server has been told that it may forget, or is about to be; 0 for nothing."""
        return self._confirmed

    def confirm(self, position: LSN) -> None:
        """Let the server forget what lies before `position` (never backwards), and show that we live, when either is due."""
        if position > self._confirmed:
            self._confirmed = position
        self._received = max(self._received, self._confirmed)
        waited = time.monotonic() - self._reported_at
        moved = self._confirmed > self._reported and waited >= REPORT_WHEN_MOVED
        if moved or self._reply_due or waited >= self._interval:
            self._report()

    def _report(self) -> None:
        now = int((time.time() - _EPOCH) * 1_000_000)
        message = _STATUS.pack(b"r", self._received, self._confirmed, self._confirmed, now, self._is_quiet)
        try:
            self._pq.put_copy_data(message)
            self._flush()
        except psycopg.OperationalError as error:
            raise self._explain(str(error), "") from None
        self._reported = self._confirmed
        self._reported_at = time.monotonic()
        self._reply_due = False

    def finish(self, wait: Callable[[], None]) -> None:
        """Send what was confirmed once more, `wait` for the server to note it, and disconnect."""
        try:
            if self._pq.status == pq.ConnStatus.OK:
                self._report()
                wait()
        except (StreamerError, psycopg.OperationalError):
            pass  # the server has gone already; what it has not heard it will send again
        finally:
            self._connection.close()

    def _flush(self) -> None:
        while self._pq.flush():
            select.select([], [self._pq.socket], [], 1.0)

    def _wait_readable(self, timeout: float | None) -> bool:
        ready, _, _ = select.select([self._pq.socket], [], [], timeout)
        return bool(ready)

    def _ended(self) -> StreamerError:
        """Why the stream is over: only the final result has the server's error."""
        result = self._pq.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return self._explain(*_complaint(result, self._pq))
        return ConnectError("the source ended the stream", "streamer connects again by itself")


def timeline_switches(connection: Connection, timeline: int) -> Mapping[int, LSN]:
    """Return where a server that writes this timeline has left those before it; nothing if it cannot tell any more.

    Raises psycopg.OperationalError if the connection is lost, which is no answer.
    https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-TIMELINE-HISTORY
    """
    result = connection.ask(f"TIMELINE_HISTORY {timeline}") if timeline > 1 else None
    history = (result.get_value(0, 1) or b"").decode() if result is not None and result.ntuples else ""
    lines = (line.split() for line in history.splitlines())
    return {int(line[0]): LSN.parse(line[1]) for line in lines if len(line) > 1 and line[0].isdigit()}


def _complaint(result: pq.abc.PGresult | None, connection: pq.abc.PGconn) -> tuple[str, str]:
    """What the server says, and its SQLSTATE."""
    message = result.error_message if result is not None else b""
    code = result.error_field(pq.DiagnosticField.SQLSTATE) if result is not None else None
    return (message or connection.error_message).decode(errors="replace").strip(), (code or b"").decode()


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quote_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
