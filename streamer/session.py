"""Connections to PostgreSQL: opened with the settings that fix the text of values, failing with errors for people.

Captures, sinks and admin commands all connect through `connect`, so that a value reads the same everywhere (DESIGN section 5).
The settings go into the start-up packet, because a walsender before version 10 takes no SQL. The trap: a server refuses a session
with a setting that it does not know, and 8.4 does not know all of them. And what is set here goes before what is set for a
database or role: so we go on writing where `cutover` has made it read-only for clients, and no timeout that is meant for clients
which forget to leave ends a session of ours that rests, or that holds a snapshot while tables are copied.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo, errors, pq
from psycopg.pq.abc import PGresult

from streamer.errors import ConnectError
from streamer.silence import ANSWER_SECONDS, Wait

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 10
"""Seconds."""
_PATIENCE: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 120_000,  # ms; keepalives don't tell while something sent is not acknowledged, and Linux tries 15 minutes
}
"""How long to put up with a server that does not answer, where the url says nothing of it."""
QUALIFIED: Final = ("search_path", "pg_catalog")
"""A setting by which the server tells names, like those that are values of regclass, with their schema: without, who receives one
may not find it."""

_SETTINGS: Final = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "client_min_messages": "warning",
    "default_transaction_read_only": "off",
    "array_nulls": "on",
    "xmloption": "content",
    # the server's own, by which it notices that we are gone: it tries two hours, and a session of ours keeps its locks so long
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_LATER: Final = (
    (90000, "bytea_output", "hex"),
    (90000, "extra_float_digits", "3"),
    (90300, "lock_timeout", "0"),
)
"""What was added since 8.4, and by which version; every server that has walsenders for us knows all of it."""
_LATEST: Final = (
    (80400, "default_transaction_isolation", "'read committed'"),  # with a space, which an option of an old server cannot have
    (90100, "quote_all_identifiers", "off"),
    (90500, "row_security", "off"),  # rows that a policy hides are an error: else they would be missing without a word
    (90600, "idle_in_transaction_session_timeout", "0"),
    (120000, "tcp_user_timeout", "120000"),  # ms
    (140000, "idle_session_timeout", "0"),
    (170000, "transaction_timeout", "0"),
)
"""What is set by a statement in any case, which walsenders take from version 10 on."""
_WALSENDER_SQL: Final = 100000
_NOTICES_DEATH: Final = 140000  # client_connection_check_interval
_OLDEST_DIGITS: Final = {"extra_float_digits": "2"}
"""What 8.4 takes; enough to tell every float8 from every other, and one digit short for float4 only before 9.0."""

_HINTS: Final = (  # the first pattern that is found in what was told counts
    (
        "password authentication failed",
        "put the right password into ~/.pgpass, or write ${{NAME}} into nodes.{node}.url and export NAME",
    ),
    (
        "no password supplied",
        "put the password into ~/.pgpass, or write ${{NAME}} into nodes.{node}.url and export NAME",
    ),
    (
        "(Peer|Ident) authentication failed",
        "run streamer as its system user, map yours to it in pg_ident.conf, or write host and password into nodes.{node}.url",
    ),
    ("no pg_hba.conf entry", "add the line to pg_hba.conf of that server, then: SELECT pg_reload_conf()"),
    ("does not exist", "create it there, or correct nodes.{node}.url"),
    ("Connection refused", "start that server, or correct host and port in nodes.{node}.url"),
    (
        r'PGSQL\.\d+": No such file',
        "start that server, or correct host, which is the socket's directory, and port in nodes.{node}.url",
    ),
    ("invalid response to SSL negotiation", "no PostgreSQL answers there: correct host and port in nodes.{node}.url"),
    (
        "timeout expired",
        "see whether host and port in nodes.{node}.url are right, and no firewall is between; streamer tries again by itself",
    ),
    ("could not translate host name", "correct the host in nodes.{node}.url"),
    ("failed to resolve host", "correct the host in nodes.{node}.url, or see why its name is not found"),
    (
        "invalid (URI query parameter|port number|percent-encoded|integer value|[a-z_]+ value: )|bad value for connect_timeout",
        "correct nodes.{node}.url",
    ),
    ("definition of service", "write it into ~/.pg_service.conf, or correct nodes.{node}.url"),
    ("server does not support SSL", "switch ssl on there, or write another sslmode into nodes.{node}.url"),
    (
        "certificate verify failed",
        "write sslrootcert=FILE, whose authority has signed that server's certificate, into nodes.{node}.url",
    ),
    (
        "server certificate for .* does not match host name",
        "write a name of that certificate as host into nodes.{node}.url, with hostaddr=ADDRESS where it does not lead there",
    ),
    ("is not permitted to log in", "ALTER ROLE … LOGIN for the role of nodes.{node}.url"),
    ("is not currently accepting connections", "ALTER DATABASE … ALLOW_CONNECTIONS true, for the database of nodes.{node}.url"),
    ("too many connections for role", "ALTER ROLE … CONNECTION LIMIT -1 for the role of nodes.{node}.url, or lower copy_jobs"),
    ("too many connections for database", "ALTER DATABASE … CONNECTION LIMIT -1 for that of nodes.{node}.url, or lower copy_jobs"),
    (
        "number of requested standby connections",
        "raise max_wal_senders on that server and restart it, or end what reads there (pg_stat_replication)",
    ),
    ("permission denied for", "grant it to the role of nodes.{node}.url; the statement: streamer check"),
    ("too many (connections|clients)", "raise max_connections on that server, or lower copy_jobs"),
    ("remaining connection slots", "raise max_connections on that server, or lower copy_jobs"),
    ("No space left on device", "make room on that server; streamer tries again by itself"),
    ("invalid byte sequence", "its bytes are no text in UTF-8: correct the value on that server; streamer tries again by itself"),
    (
        "row-level security policy",
        "ALTER ROLE … BYPASSRLS for the role of nodes.{node}.url, as a superuser; a policy would hide rows from it",
    ),
    ("must be superuser or replication role", "ALTER ROLE … REPLICATION for the role of nodes.{node}.url"),
    ("permission denied to start WAL sender", "ALTER ROLE … REPLICATION for the role of nodes.{node}.url"),
)


class SilenceError(psycopg.OperationalError):
    """A connection was given up because nothing came any more."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose waits end when nothing comes any more; `waiting` is for those that do not go through psycopg."""

    waiting: SessionWait

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **settings: Any) -> T:  # noqa: ANN401  # as psycopg has them
        """Do what psycopg does."""
        try:
            with self.waiting.noted():
                return super().wait(gen, *arguments, **settings)
        except psycopg.OperationalError:
            self.waiting.explain()
            raise

    def close(self) -> None:
        """Disconnect."""
        self.waiting.end()
        super().close()

    def ask(self, command: str) -> PGresult:
        """Run a command by the simple protocol, the only one that a walsender speaks, and return its last result, which may be an
        error of the server. Raises psycopg.OperationalError if the connection is lost, to libpq an error like any other."""
        with self.waiting.noted():
            result = self.pgconn.exec_(command.encode())
        if self.pgconn.status != pq.ConnStatus.OK:
            self.waiting.explain()
            raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace") or "the connection is lost")
        return result

    def send_all(self) -> None:
        """Send what libpq holds, and take in what comes meanwhile: else both sides might wait for each other."""
        while self.pgconn.flush():
            if self.poll(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self.pgconn.consume_input()

    def next_result(self) -> PGresult | None:
        """Wait for the next part of the answer to what was sent through `pgconn`. Raises psycopg.OperationalError."""
        while self.pgconn.is_busy():
            self.poll(select.POLLIN)
            self.pgconn.consume_input()
        return self.pgconn.get_result()

    def poll(self, events: int) -> int:
        """Wait for one of these events of poll(2) on the socket; return which have come."""
        poll = select.poll()
        poll.register(self.pgconn.socket, events)
        with self.waiting.noted():
            return poll.poll()[0][1]


class SessionWait(Wait):
    """What a session waits for, as the server tells it another one: `parameters` are those of both."""

    def __init__(self, connection: Connection, parameters: dict[str, Any], *, walsender: bool) -> None:
        super().__init__()
        self._pgconn = connection.pgconn
        self._walsender = walsender
        #: to the same server, where the url leads to several
        own = {"host": connection.info.host, "hostaddr": connection.info.hostaddr, "port": connection.info.port}
        self._parameters = parameters | {name: value for name, value in own.items() if value}
        self._name = parameters["application_name"][:63]  # names are cut at 63 bytes
        self.pid = connection.pgconn.backend_pid

    def explain(self) -> None:
        """Raise SilenceError if the connection was given up: the driver only knows that it is lost."""
        if self.given_up:
            raise SilenceError(self.reason) from None

    def is_lost(self) -> bool:
        """Whether our process is gone, or waits for us as we do for it, or nobody answers."""
        try:
            with self._beside() as connection:
                number = version(connection)
                rows = connection.execute(_WAITS[min(since for since in _WAITS if number < since)], [self.pid]).fetchall()
        except psycopg.Error as error:
            return "FATAL" not in str(error)  # else somebody has answered, and refuses
        tells = not self._walsender or number >= _WALSENDER_SQL
        return not rows or (tells and rows == [(True,)])

    def break_off(self) -> None:
        """Shut the connection's socket."""
        if self._pgconn.status == pq.ConnStatus.OK:
            _shut(self._pgconn.socket)

    def end_there(self) -> None:
        """Terminate our process; an old server lets only superusers do that, and notices by its keepalives."""
        with suppress(psycopg.Error), self._beside() as connection:
            connection.execute(_TERMINATE, [self.pid, self._name])

    @contextmanager
    def _beside(self) -> Iterator[psycopg.Connection[Any]]:
        """Another connection to the server, broken off if its answers take long."""
        with psycopg.connect(**self._parameters, autocommit=True) as connection:
            watch = Timer(ANSWER_SECONDS, _shut, [connection.pgconn.socket])
            watch.daemon = True
            watch.start()
            try:
                yield connection
            finally:
                watch.cancel()


_FOR_CLIENT: Final = "'clientread', 'clientwrite', 'walsendermain', 'walsenderwaitforwal', 'walsenderwritedata'"
_WAITS: Final = {
    90200: b"SELECT current_query LIKE '<IDLE>%%' FROM pg_catalog.pg_stat_activity WHERE procpid = %s",
    100000: b"SELECT state LIKE 'idle%%' FROM pg_catalog.pg_stat_activity WHERE pid = %s",
    1000000: f"SELECT state LIKE 'idle%%' OR coalesce(lower(wait_event) IN ({_FOR_CLIENT}), false) "
    "FROM pg_catalog.pg_stat_activity WHERE pid = %s".encode(),
}
"""How a server below a version tells that a process waits for its client; amid a COPY none below 10 does."""
_TERMINATE: Final = b"SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %s AND application_name = %s"


def connect(node: str, url: str, *, application: str, replication: bool = False) -> Connection:
    """Return a connection in autocommit mode to the node named `node`; `application` is what pg_stat_activity shows.

    With `replication` it is a walsender connection to the database, which takes the simple protocol only.
    Raises ConnectError.
    """
    try:
        parameters: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
        settings = _SETTINGS | (dict([QUALIFIED, *(later[1:] for later in _LATER)]) if replication else _OLDEST_DIGITS)
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        parameters["options"] = f"{parameters.get('options', '')} {options}".strip()
        parameters = _PATIENCE | parameters | {"application_name": application, "client_encoding": "UTF8"}
        connection = Connection.connect(**parameters, replication="database" if replication else None, autocommit=True)
        connection.waiting = SessionWait(connection, parameters, walsender=replication)
        if not replication:
            _set_later(connection, _LATER + _LATEST)
        elif version(connection) >= _WALSENDER_SQL:
            _set_later(connection, _LATEST)
        return connection
    except psycopg.Error as error:
        raise connect_error(node, error) from None


def _shut(descriptor: int) -> None:
    """Shut a socket: whoever waits for it notices."""
    with socket.socket(fileno=os.dup(descriptor)) as wire, suppress(OSError):  # it has ended by itself
        wire.shutdown(socket.SHUT_RDWR)


def _set_later(connection: Connection, settings: Sequence[tuple[int, str, str]]) -> None:
    """Make the settings that not every server knows, and learn the number of the session's process, of which a pooler makes up
    another; a connection without them is closed. Raises psycopg.Error."""
    known = [f"SET {name} = {value}" for since, name, value in settings if version(connection) >= since]
    try:
        result = connection.ask("; ".join([*known, "SELECT pg_catalog.pg_backend_pid()"]))
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
    except psycopg.Error:
        connection.close()
        raise
    connection.waiting.pid = int(result.get_value(0, 0) or 0)


def cells(result: PGresult) -> Iterator[list[str | None]]:
    """Give the rows of a result as the server has written them: what the types' output functions give."""
    for i in range(result.ntuples):
        row = (result.get_value(i, j) for j in range(result.nfields))
        yield [None if cell is None else cell.decode() for cell in row]


def connect_error(node: str, error: psycopg.Error) -> ConnectError:
    """Return what happened to the connection as one line, with a remedy where one is known."""
    return ConnectError(f'node "{node}": {reason_of(error)}', remedy(node, error, "streamer tries again by itself"))


def remedy(node: str, error: psycopg.Error, otherwise: str) -> str:
    """Return what helps against an error of the node's server; `otherwise` if nothing in particular is known."""
    reason = reason_of(error)
    return next((hint.format(node=node) for pattern, hint in _HINTS if re.search(pattern, reason)), otherwise)


def reason_of(error: psycopg.Error) -> str:
    """Return the gist of a database error, in one line."""
    if primary := error.diag.message_primary:
        detail = error.diag.message_detail
        return f"{primary} ({detail.rstrip('.')})" if detail else primary
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # libpq: "connection failed: connection to server at "h", port 1 failed: reason"; with several addresses, one line each
    text = lines[-1] if "Multiple connection attempts failed" in lines[0] else lines[0]
    text = re.sub(r"^(connection failed|connection is bad|consuming input failed): ", "", text)
    return re.sub(r"^connection to server (.*?) failed: (FATAL:\s+)?", r"\1: ", text).removeprefix("at ")


@contextmanager
def reported(node: str) -> Iterator[None]:
    """Turn any database error inside into a ConnectError that names the node."""
    try:
        yield
    except psycopg.Error as error:
        raise connect_error(node, error) from error


def end_with_us(connection: Connection) -> None:
    """Have the server end a statement of ours when we are gone, where it can: else it notices only when it wants to answer."""
    if version(connection) >= _NOTICES_DEATH:
        with suppress(errors.InvalidParameterValue):  # a server on Windows cannot
            connection.execute("SET client_connection_check_interval = '5s'")


def is_denied(error: psycopg.Error) -> bool:
    """Whether the error says that our role may not do that."""
    return isinstance(error, errors.InsufficientPrivilege)


def sessions(connection: Connection, application: str) -> list[int]:
    """Return the processes of this database whose sessions have the name `application`; on 8.4, which keeps no names, none."""
    number = version(connection)
    if number < 90000:
        return []
    pid = "pid" if number >= 90200 else "procpid"
    query = f"SELECT {pid} FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    return [found for (found,) in connection.execute(query.encode(), [application[:63]])]  # names are cut at 63 bytes


def version(connection: psycopg.Connection[Any]) -> int:
    """The server's version number, as in 150020."""
    return connection.info.server_version
