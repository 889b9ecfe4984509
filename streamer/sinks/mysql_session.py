"""Connections to MySQL and MariaDB: how they are opened, LOAD DATA LOCAL from memory, and what their errors mean.

Every session is strict, in UTC and utf8mb4, does not check foreign keys, and counts rows that were found, not only changed ones.
The trap: with LOAD DATA LOCAL it is the server that names the file which the client is to send, and any file would do. Ours sends
what it was told to load, and nothing else.

https://dev.mysql.com/doc/refman/8.4/en/load-data-local-security.html
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import pymysql
from pymysql.connections import MySQLResult
from pymysql.constants import CLIENT, CR, ER
from pymysql.protocol import LoadLocalPacketWrapper

from streamer.errors import ConnectError, StreamerError, TargetError
from streamer.node_config import MysqlAddress
from streamer.silence import ANSWER_SECONDS, Wait

CONNECT_TIMEOUT: Final = 10
"""Seconds until a server that does not answer is given up."""
PACKET_BYTES: Final = 1 << 18
"""How much of a file goes out in one packet."""
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 120_000}  # s, s, probes, ms

_SETTINGS: Final = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,"
    "NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', foreign_key_checks = 0, sql_safe_updates = 0, sql_notes = 1, "
    "wait_timeout = 2147483, "  # seconds; the largest that every platform takes
    "unique_checks = 1, sql_select_limit = 18446744073709551615 "  # all rows
    "/*M!100300 , max_statement_time = 0, idle_transaction_timeout = 0, idle_write_transaction_timeout = 0 */"
)
_ISOLATION: Final = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"  # no locks on gaps between keys

_WAITS: Final = (
    "SELECT COMMAND = 'Sleep' OR coalesce(STATE, '') REGEXP '[ -]net$|client' FROM information_schema.PROCESSLIST WHERE ID = %s"
)
"""Whether a thread waits for its client."""

Error: TypeAlias = pymysql.MySQLError
Parameters: TypeAlias = Sequence[object] | None

RETRIED: Final = (ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT)
"""Errors that the same transaction need not run into again."""
_INTERRUPTED: Final = 1317
_CLIENT_ERRORS: Final = range(2000, 3000)
_LOST: Final = (1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1927)  # shutdown, aborted, packets, killed
_UNREACHABLE: Final = (1040, 1044, 1045, 1049, 1129, 1130, 1203, 1226, 1698, 4151)

AGAIN: Final = "streamer tries again by itself"
_DENIED: Final = re.compile(r"user ('.*'@'.*') to database '(.*)'")
RIGHTS: Final = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, CREATE TEMPORARY TABLES"
"""What setup, run and teardown need; run alone needs no CREATE and DROP."""
_HINTS: Final = {
    1040: "raise max_connections on that server, or lower copy_jobs",
    1044: f"there, as an administrator: GRANT {RIGHTS} ON `{{database}}`.* TO {{account}}",
    1045: "correct user and password in nodes.{node}.url; write ${{NAME}} for the password, and export NAME",
    1049: "there: CREATE DATABASE `{database}` CHARACTER SET utf8mb4, or correct nodes.{node}.url",
    1130: "create the user for the host that streamer comes from: CREATE USER {user}@'HOST' IDENTIFIED BY '…'",
    1142: f"there, as an administrator: GRANT {RIGHTS} ON `{{database}}`.* TO {{account}}",
    1205: "another session holds locks, see: SHOW ENGINE INNODB STATUS; {again}",
    1290: "that server is read only; point nodes.{node}.url at the one that takes writes",
    1114: "make room on that server; {again}",
    1698: "correct user and password in nodes.{node}.url; write ${{NAME}} for the password, and export NAME",
    2003: "start that server, or correct host and port in nodes.{node}.url",
    2026: "let the server offer TLS, or set ssl_mode and ssl_ca in nodes.{node}.url",
}


if TYPE_CHECKING:
    _Base: TypeAlias = pymysql.connections.Connection[Any]
else:
    _Base = pymysql.connections.Connection


class Connection(_Base):
    """A connection in autocommit mode. Raises pymysql.MySQLError, here and in all methods."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401  # as PyMySQL has them
        self._file: Iterable[bytes] = ()
        self._waiting: _ThreadWait | None = None
        super().__init__(**arguments)

    def be_watched(self, beside: Callable[[], Connection]) -> None:
        """End waits in which nothing comes any more; `beside` makes connections to the same server to look into them."""
        this = cast(Any, self)
        this._read_timeout = this._write_timeout = None  # what was for connecting; a lock may be waited for much longer
        self._waiting = _ThreadWait(self, beside)

    def _read_bytes(self, num_bytes: int) -> bytes:
        return bytes(self._watched(super()._read_bytes, num_bytes))  # type: ignore[misc]  # the stubs leave it out

    def _write_bytes(self, data: bytes) -> None:
        self._watched(super()._write_bytes, data)  # type: ignore[misc]

    def _watched(self, method: Callable[[Any], Any], argument: object) -> Any:  # noqa: ANN401  # what the method returns
        waiting = self._waiting
        if waiting is None:
            return method(argument)
        waiting.begin()
        try:
            return method(argument)
        except pymysql.OperationalError:
            if waiting.given_up:
                raise pymysql.OperationalError(CR.CR_SERVER_LOST, waiting.reason) from None
            raise
        finally:
            waiting.end()

    @property
    def thread(self) -> int:
        """What KILL calls the connection."""
        return int(cast(Any, self).server_thread_id[0])

    def run(self, statement: str, parameters: Parameters = None) -> int:
        """Execute a statement; return how many rows it found or wrote."""
        with self.cursor() as cursor:
            return int(cursor.execute(statement, parameters))

    def rows(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.cursor() as cursor:
            cursor.execute(query, parameters)
            return list(cursor.fetchall())

    def load(self, statement: str, pieces: Iterable[bytes]) -> tuple[int, int]:
        """Execute LOAD DATA LOCAL with these pieces for its file; return how many rows were written, and of how many warnings it
        told. The server works on a piece while the next one is made. Raises what making one raises, when the rest is not sent.

        A row that does not fit is altered or left out, and a warning is all that tells of it, in strict mode too.
        """
        self._file = pieces
        try:
            written = self.query(statement)
            return int(written), int(self._result.warning_count)
        finally:
            self._file = ()

    def _read_query_result(self, unbuffered: bool = False) -> int:
        self._result: Any = None
        result = _Result(self)
        if unbuffered:
            result.init_unbuffered_query()
        else:
            result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return int(result.affected_rows or 0)

    def _sent_file(self) -> Iterator[bytes]:
        """What the server is given for a file that it asks for."""
        return (piece[start : start + PACKET_BYTES] for piece in self._file for start in range(0, len(piece), PACKET_BYTES))


class _Result(MySQLResult):
    """Sends the bytes of Connection.load instead of a file of the server's choice."""

    def _read_load_local_packet(self, first_packet: Any) -> None:  # noqa: ANN401  # PyMySQL's own class
        this, connection = cast(Any, self), cast(Any, self.connection)  # what the stubs leave out
        LoadLocalPacketWrapper(first_packet)
        try:
            for packet in connection._sent_file():
                connection.write_packet(packet)
        finally:
            if connection.open:  # else it was lost, which has been raised
                connection.write_packet(b"")  # the server waits for the end of the file, and answers then
                answer = connection._read_packet()
        if not answer.is_ok_packet():
            raise pymysql.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Commands Out of Sync")
        this._read_ok_packet(answer)


class _ThreadWait(Wait):
    """What a connection waits for, as the server tells another one."""

    def __init__(self, connection: Connection, beside: Callable[[], Connection]) -> None:
        super().__init__()
        self._socket: socket.socket = cast(Any, connection)._sock
        self._thread = connection.thread
        self._beside = beside

    def is_lost(self) -> bool:
        """Whether the server's thread is gone, or waits for us as we do for it, or nobody answers."""
        try:
            with closing(self._beside()) as connection:
                return connection.rows(_WAITS, (self._thread,)) != [(0,)]
        except (Error, OSError) as error:
            return not isinstance(error, Error) or code_of(error) in _CLIENT_ERRORS  # else somebody has answered, and refuses

    def break_off(self) -> None:
        """Shut the connection's socket, not by the methods of TLS, which want to say good-bye."""
        with suppress(OSError):  # it has ended by itself
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def end_there(self) -> None:
        """Kill the server's thread."""
        with suppress(Error, OSError), closing(self._beside()) as connection:
            connection.run(f"KILL {self._thread}")


def connect(node: str, address: MysqlAddress) -> Connection:
    """Return a connection to the node, in the url's database. Raises ConnectError."""
    try:
        connection = _connect(address)
        _keep_alive(connection)
        connection.run(_ISOLATION)
    except Error as error:
        raise failure(node, address, error) from None
    except RuntimeError as error:  # a password that would have to be encrypted by a library that we don't need otherwise
        raise ConnectError(
            f'node "{node}": {error}', f"let the server offer TLS, and don't set ssl_mode=disabled in nodes.{node}.url"
        ) from None
    except OSError as error:  # ssl.SSLError too, and files that are not there
        raise ConnectError(
            f'node "{node}": {address.unix_socket or f"{address.host}:{address.port}"}: {error.strerror or error}',
            f"correct nodes.{node}.url, or start that server",
        ) from None
    connection.be_watched(partial(_connect, address))
    return connection


def _connect(address: MysqlAddress) -> Connection:
    """A connection whose server must answer soon. Raises pymysql.MySQLError, RuntimeError, OSError."""
    if address.unix_socket:
        with socket.socket(socket.AF_UNIX) as probe:  # PyMySQL would leave one open that is refused
            probe.connect(address.unix_socket)
    return Connection(
        host=address.host,
        port=address.port,
        user=address.user or None,
        password=address.password,
        database=address.database,
        unix_socket=address.unix_socket or None,
        charset="utf8mb4",
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=ANSWER_SECONDS,
        write_timeout=ANSWER_SECONDS,
        autocommit=True,
        local_infile=True,
        client_flag=CLIENT.FOUND_ROWS,
        init_command=_SETTINGS,
        program_name="streamer",
        **_tls(address),
    )


def _tls(address: MysqlAddress) -> dict[str, Any]:
    """PyMySQL's arguments. Without any, it takes TLS where the server offers it, which on a socket only costs time."""
    mode = address.ssl_mode
    if mode == "disabled" or (mode == "preferred" and address.unix_socket):
        return {"ssl_disabled": True}
    if mode == "preferred" and not address.ssl_cert:
        return {}
    context = ssl.create_default_context(cafile=address.ssl_ca or None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the authorities that servers make for themselves lack an extension
    context.check_hostname = mode == "verify_identity"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("verify") else ssl.CERT_NONE
    if address.ssl_cert:
        context.load_cert_chain(address.ssl_cert, address.ssl_key or None)
    return {"ssl": context}


def _keep_alive(connection: Any) -> None:  # noqa: ANN401  # the socket is PyMySQL's own
    """Notice within a minute that a host is gone, and within two while it owes us an acknowledgement."""
    opened: socket.socket = connection._sock
    if opened.family in (socket.AF_INET, socket.AF_INET6):
        for option, value in _KEEPALIVE.items():
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def code_of(error: Error) -> int:
    """Return the number of an error; 0 if it has none."""
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def reason_of(error: Error) -> str:
    """Return the gist of an error, in one line."""
    return str(error.args[1]) if len(error.args) > 1 and error.args[1] else str(error) or type(error).__name__


def is_lost(error: Error) -> bool:
    """Whether the connection is gone."""
    return code_of(error) in (*_CLIENT_ERRORS, *_LOST) or isinstance(error, pymysql.InterfaceError)


def failure(node: str, address: MysqlAddress, error: Error, again: str = AGAIN) -> StreamerError:
    """Return an error of the server, other than the refusal of a row, for people; `again` says what becomes of the attempt."""
    code = code_of(error)
    if isinstance(error, pymysql.InterfaceError):
        return ConnectError(f'node "{node}": the connection was closed', again)
    user = f"'{address.user}'" if address.user else "the user"
    # the host is that of the account only where a database is denied; elsewhere it is where we come from
    denied = _DENIED.search(reason_of(error)) if code == ER.DBACCESS_DENIED_ERROR else None
    hint = _HINTS.get(code, "{again}").format(
        node=node,
        user=user,
        account=denied[1] if denied else f"{user}@'HOST', the account that SELECT CURRENT_USER() names",
        database=denied[2] if denied else address.database,
        again=again,
    )
    kind = ConnectError if code in _UNREACHABLE or is_lost(error) else TargetError
    what = "what it was doing was broken off" if code == _INTERRUPTED else reason_of(error)
    return kind(f'node "{node}": {what}' + (f" (error {code})" if code else ""), hint)


@contextmanager
def failing(node: str, address: MysqlAddress, again: str = AGAIN) -> Iterator[None]:
    """Turn errors of the server inside into ones for people."""
    try:
        yield
    except Error as error:
        raise failure(node, address, error, again) from error
