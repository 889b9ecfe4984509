"""Connections to MySQL and MariaDB: how they are opened, LOAD DATA LOCAL from memory, and what their errors mean.

Every session is strict, in UTC and utf8mb4, does not check foreign keys, and counts rows that were found, not only changed ones.
The trap: with LOAD DATA LOCAL it is the server that names the file which the client is to send, and any file would do. Ours sends
what it was told to load, and nothing else.

https://dev.mysql.com/doc/refman/8.4/en/load-data-local-security.html
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import pymysql
from pymysql.connections import MySQLResult
from pymysql.constants import CLIENT, CR, ER
from pymysql.protocol import LoadLocalPacketWrapper

from streamer.errors import ConnectError, StreamerError, TargetError
from streamer.node_config import MysqlAddress

CONNECT_TIMEOUT: Final = 10
"""Seconds until a server that does not answer is given up."""
PACKET_BYTES: Final = 1 << 18
"""How much of a file goes out in one packet."""
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes

_SETTINGS: Final = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,"
    "NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', foreign_key_checks = 0, sql_safe_updates = 0, sql_notes = 1, "
    "wait_timeout = 2147483"  # seconds; the largest that every platform takes
)
_ISOLATION: Final = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"  # no locks on gaps between keys

Error: TypeAlias = pymysql.MySQLError
Parameters: TypeAlias = Sequence[object] | None

RETRIED: Final = (ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT)
"""Errors that the same transaction need not run into again."""
_INTERRUPTED: Final = 1317
_CLIENT_ERRORS: Final = range(2000, 3000)
_LOST: Final = (1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1927)  # shutdown, aborted, packets, killed
_UNREACHABLE: Final = (1040, 1044, 1045, 1049, 1129, 1130, 1203, 1226, 1698, 4151)

RIGHTS: Final = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, CREATE TEMPORARY TABLES"
"""What setup, run and teardown need; run alone needs no CREATE and DROP."""
_HINTS: Final = {
    1040: "raise max_connections on that server, or lower copy_jobs",
    1044: f"there, as an administrator: GRANT {RIGHTS} ON `{{database}}`.* TO {{user}}",
    1045: "correct user and password in nodes.{node}.url; write ${{NAME}} for the password, and export NAME",
    1049: "there: CREATE DATABASE `{database}` CHARACTER SET utf8mb4, or correct nodes.{node}.url",
    1130: "create the user for the host that streamer comes from: CREATE USER {user}@'HOST' IDENTIFIED BY '…'",
    1142: f"there, as an administrator: GRANT {RIGHTS} ON `{{database}}`.* TO {{user}}",
    1205: "another session holds locks, see: SHOW ENGINE INNODB STATUS; streamer tries again by itself",
    1290: "that server is read only; point nodes.{node}.url at the one that takes writes",
    1114: "make room on that server; streamer tries again by itself",
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
        self._file: bytes | None = None
        super().__init__(**arguments)

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

    def load(self, statement: str, data: bytes) -> tuple[int, int]:
        """Execute LOAD DATA LOCAL with `data` for its file; return how many rows were written, and of how many warnings it told.

        A row that does not fit is altered or left out, and a warning is all that tells of it, in strict mode too.
        """
        self._file = data
        try:
            written = self.query(statement)
            return int(written), int(self._result.warning_count)
        finally:
            self._file = None

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
        data = self._file or b""
        return (data[start : start + PACKET_BYTES] for start in range(0, len(data), PACKET_BYTES))


class _Result(MySQLResult):
    """Sends the bytes of Connection.load instead of a file of the server's choice."""

    def _read_load_local_packet(self, first_packet: Any) -> None:  # noqa: ANN401  # PyMySQL's own class
        this, connection = cast(Any, self), cast(Any, self.connection)  # what the stubs leave out
        LoadLocalPacketWrapper(first_packet)
        for packet in connection._sent_file():
            connection.write_packet(packet)
        connection.write_packet(b"")
        answer = connection._read_packet()
        if not answer.is_ok_packet():
            raise pymysql.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Commands Out of Sync")
        this._read_ok_packet(answer)


def connect(node: str, address: MysqlAddress) -> Connection:
    """Return a connection to the node, in the url's database. Raises ConnectError."""
    try:
        if address.unix_socket:
            with socket.socket(socket.AF_UNIX) as probe:  # PyMySQL would leave one open that is refused
                probe.connect(address.unix_socket)
        connection = Connection(
            host=address.host,
            port=address.port,
            user=address.user or None,
            password=address.password,
            database=address.database,
            unix_socket=address.unix_socket or None,
            charset="utf8mb4",
            connect_timeout=CONNECT_TIMEOUT,
            autocommit=True,
            local_infile=True,
            client_flag=CLIENT.FOUND_ROWS,
            init_command=_SETTINGS,
            program_name="streamer",
            **_tls(address),
        )
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
    _keep_alive(connection)
    with failing(node, address):
        connection.run(_ISOLATION)
    return connection


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
    """Notice within a minute that a host is gone."""
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


def failure(node: str, address: MysqlAddress, error: Error) -> StreamerError:
    """Return an error of the server, other than the refusal of a row, for people."""
    code = code_of(error)
    if isinstance(error, pymysql.InterfaceError):
        return ConnectError(f'node "{node}": the connection was closed', "streamer tries again by itself")
    user = f"'{address.user}'" if address.user else "the user"
    hint = _HINTS.get(code, "streamer tries again by itself").format(node=node, user=user, database=address.database)
    kind = ConnectError if code in _UNREACHABLE or is_lost(error) else TargetError
    what = "what it was doing was broken off" if code == _INTERRUPTED else reason_of(error)
    return kind(f'node "{node}": {what}' + (f" (error {code})" if code else ""), hint)


@contextmanager
def failing(node: str, address: MysqlAddress) -> Iterator[None]:
    """Turn errors of the server inside into ones for people."""
    try:
        yield
    except Error as error:
        raise failure(node, address, error) from error
