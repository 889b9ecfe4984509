"""Connections to PostgreSQL: opened with the settings that fix the text of values, failing with errors for people.

Captures, sinks and admin commands all connect through `connect`, so that a value reads the same everywhere (DESIGN section 5).
The settings go into the start-up packet, because a walsender before version 10 takes no SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import conninfo, errors
from psycopg.pq.abc import PGresult

from streamer.errors import ConnectError

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT: Final = 10
"""Seconds."""

_SETTINGS: Final = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "client_min_messages": "warning",
}

_HINTS: Final = (
    (
        "password authentication failed",
        "put the right password into ~/.pgpass, or write ${{NAME}} into nodes.{node}.url and export NAME",
    ),
    (
        "no password supplied",
        "put the password into ~/.pgpass, or write ${{NAME}} into nodes.{node}.url and export NAME",
    ),
    ("no pg_hba.conf entry", "add the line to pg_hba.conf of that server, then: SELECT pg_reload_conf()"),
    ("does not exist", "create it there, or correct nodes.{node}.url"),
    ("Connection refused", "start that server, or correct host and port in nodes.{node}.url"),
    ("could not translate host name", "correct the host in nodes.{node}.url"),
    ("too many connections", "raise max_connections on that server, or lower copy_jobs"),
    ("remaining connection slots", "raise max_connections on that server, or lower copy_jobs"),
    ("must be superuser or replication role", "ALTER ROLE … REPLICATION for the role of nodes.{node}.url"),
    ("permission denied to start WAL sender", "ALTER ROLE … REPLICATION for the role of nodes.{node}.url"),
)


def connect(node: str, url: str, *, application: str, replication: bool = False) -> Connection:
    """Return a connection in autocommit mode to the node named `node`; `application` is what pg_stat_activity shows.

    With `replication` it is a walsender connection to the database, which takes the simple protocol only.
    Raises ConnectError.
    """
    try:
        parameters: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
        options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        parameters["options"] = f"{parameters.get('options', '')} {options}".strip()
        parameters.setdefault("connect_timeout", CONNECT_TIMEOUT)
        if replication:
            parameters["replication"] = "database"
        return psycopg.connect(
            **parameters,
            application_name=application,
            client_encoding="UTF8",
            autocommit=True,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        )
    except psycopg.Error as error:
        raise connect_error(node, error) from None


def cells(result: PGresult) -> Iterator[list[str | None]]:
    """Give the rows of a result as the server has written them: what the types' output functions give."""
    for i in range(result.ntuples):
        row = (result.get_value(i, j) for j in range(result.nfields))
        yield [None if cell is None else cell.decode() for cell in row]


def connect_error(node: str, error: psycopg.Error) -> ConnectError:
    """Return what happened to the connection as one line, with a remedy where one is known."""
    reason = reason_of(error)
    hint = next((hint for words, hint in _HINTS if words in reason), "streamer tries again by itself")
    return ConnectError(f'node "{node}": {reason}', hint.format(node=node))


def reason_of(error: psycopg.Error) -> str:
    """Return the gist of a database error, in one line."""
    if primary := error.diag.message_primary:
        detail = error.diag.message_detail
        return f"{primary} ({detail.rstrip('.')})" if detail else primary
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # libpq: "connection failed: connection to server at "h", port 1 failed: reason"; with several addresses, one line each
    text = lines[-1] if "Multiple connection attempts failed" in lines[0] else lines[0]
    text = re.sub(r"^(connection failed|consuming input failed): ", "", text)
    return re.sub(r"^connection to server (.*) failed: (FATAL:\s+)?", r"\1: ", text).removeprefix("at ")


@contextmanager
def reported(node: str) -> Iterator[None]:
    """Turn any database error inside into a ConnectError that names the node."""
    try:
        yield
    except psycopg.Error as error:
        raise connect_error(node, error) from error


def is_denied(error: psycopg.Error) -> bool:
    """Whether the error says that our role may not do that."""
    return isinstance(error, errors.InsufficientPrivilege)


def version(connection: Connection) -> int:
    """The server's version number, as in 150020."""
    return connection.info.server_version
