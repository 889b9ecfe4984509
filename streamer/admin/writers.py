"""Who writes a database, and how clients are kept from it: for `cutover`.

`default_transaction_read_only` is set for the database, and every session that began before that is ended; sessions of ours say for
themselves that they write (session.py), and go on. Who has written and not yet committed is told by the lock that each transaction
holds on its own number, which every version shows, and to every role.

The traps: the setting is a default, which any session may change for itself, so whoever relies on it looks again later. And a
prepared transaction belongs to no session, but is committed all the same. Before version 9.0 sessions have no names; there all
sessions of our role count as ours.

https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-DEFAULT-TRANSACTION-READ-ONLY
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from streamer.admin.nodes import session
from streamer.config import Config
from streamer.errors import SourceError, StreamerError
from streamer.session import Connection, version

SETTING: Final = "default_transaction_read_only"
POLL_SECONDS: Final = 0.1
NAMED: Final = 90000  # application_name, pg_db_role_setting
PID: Final = 90200  # pg_stat_activity.pid, before: procpid
ROLES: Final = 100000  # pg_read_all_stats, and pg_stat_activity.backend_type

_SESSIONS: Final = """
SELECT a.{pid}, a.usename, {application}, a.backend_start, a.xact_start IS NOT NULL, EXISTS (
    SELECT 1 FROM pg_catalog.pg_locks l
    WHERE l.pid = a.{pid} AND l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted)
FROM pg_catalog.pg_stat_activity a
WHERE a.datname = current_database() AND a.{pid} <> pg_backend_pid() AND a.usename IS NOT NULL AND {theirs}
ORDER BY 1
"""
_PREPARED: Final = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY 1"
_CONFIGURED: Final = """
SELECT unnest({column}) FROM {table} WHERE {database} = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
_OWNS: Final = """
SELECT r.rolsuper, pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
WHERE d.datname = current_database() AND r.rolname = current_user
"""
_MAY_END: Final = "SELECT pg_has_role('pg_signal_backend', 'MEMBER') AND pg_has_role('pg_read_all_stats', 'MEMBER')"


@dataclass(frozen=True, slots=True)
class Client:
    """A session of somebody else in a database."""

    pid: int
    role: str
    application: str
    #: when it began; None if our role may not know
    started: datetime | None
    #: whether it has a transaction open, as far as our role may know
    open: bool
    #: whether this has written
    writes: bool

    def __str__(self) -> str:
        doing = "writes" if self.writes else "in a transaction" if self.open else "idle"
        name = f" ({self.application})" if self.application else ""
        return f"{self.pid} {self.role}{name}: {doing}"


class Writers:
    """The clients of one node's database. Every question is a session of its own: the node may have been away meanwhile.

    All methods raise StreamerError with the remedy.
    """

    def __init__(self, config: Config, node: str) -> None:
        self._config = config
        self._node = node
        #: whether it was us who made the database read-only, and what was set before
        self._closed = False
        self._before: str | None = None

    def clients(self) -> list[Client]:
        """Return the sessions of others."""
        with session(self._config, self._node) as connection:
            return list(_clients(connection))

    def require_no_prepared(self) -> None:
        """Raise SourceError if a prepared transaction waits to be committed."""
        with session(self._config, self._node) as connection:
            _require_no_prepared(connection, self._node)

    def require_rights(self, *, ending: bool) -> None:
        """Raise SourceError if our role may not set anything for the database or, with `ending`, may not end sessions."""
        with session(self._config, self._node) as connection:
            role = sql.Identifier(connection.info.user).as_string(connection)
            superuser, owns = connection.execute(_OWNS).fetchone() or (False, False)
            if superuser:
                return
            if not owns:
                raise SourceError(
                    f'node "{self._node}": role {role} does not own the database, so it may not make it read-only or open it',
                    f"GRANT the role that owns it TO {role}",
                )
            if ending and (version(connection) < ROLES or connection.execute(_MAY_END).fetchone() != (True,)):
                grant = f"GRANT pg_signal_backend, pg_read_all_stats TO {role}"
                raise SourceError(
                    f'node "{self._node}": role {role} may not end the sessions of others',
                    grant if version(connection) >= ROLES else "before version 10 let it be a superuser",
                )

    def wait_until_idle(self, seconds: float) -> list[Client]:
        """Wait until nobody has written without having committed; return the sessions that are still there.

        Raises SourceError for those who go on for so many seconds.
        """
        deadline = time.monotonic() + seconds
        with session(self._config, self._node) as connection:
            _require_no_prepared(connection, self._node)
            while True:
                found = list(_clients(connection))
                writing = [client for client in found if client.writes]
                if not writing:
                    return found
                if time.monotonic() > deadline:
                    pids = ", ".join(str(client.pid) for client in writing)
                    raise SourceError(
                        f'"{self._node}" is still written by {"; ".join(map(str, writing))}',
                        f"stop the application, or end it: SELECT pg_terminate_backend(pid) for {pids}; or use --block-writes",
                    )
                time.sleep(POLL_SECONDS)

    # -- keeping them out --------------------------------------------------------------------------------------------------------

    def statement(self, value: str | None) -> str:
        """The statement that sets this for the database, or resets it."""
        with session(self._config, self._node) as connection:
            return _statement(connection, value)

    @property
    def setting(self) -> str | None:
        """What is set for the database now."""
        with session(self._config, self._node) as connection:
            return setting(connection)

    def close(self, seconds: float) -> int:
        """Make the database read-only for clients, and end the sessions that do not know it yet; return how many these were.

        Raises SourceError if one of them is still there after so many seconds.
        """
        statement = self.statement("on")
        with session(self._config, self._node) as connection:
            _require_no_prepared(connection, self._node)
            if (before := setting(connection)) != "on":
                self._before, self._closed = before, True  # from now on, whether or not we hear that it was done
                try:
                    connection.execute(statement.encode())
                except psycopg.Error as error:
                    self._closed = error.sqlstate is None or connection.broken
                    raise
            (moment,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
            return _end(connection, self._node, moment, seconds)

    def reopen(self) -> None:
        """Undo `close`; the sessions stay ended, but new ones write again."""
        if self._closed:
            self._set(self._before)
            self._closed = False

    def open(self) -> bool:
        """Let clients write, whoever has kept them from it; return whether there was something to do."""
        if self.setting != "on":
            return False
        self._set(None)
        return True

    def shut(self) -> None:
        """Undo `open`; sessions that have begun since may write on."""
        self._set("on")

    def _set(self, value: str | None) -> None:
        statement = self.statement(value)
        with session(self._config, self._node) as connection:
            connection.execute(statement.encode())


def _clients(connection: Connection) -> Iterator[Client]:
    number = version(connection)
    theirs = "a.usename <> current_user"
    if number >= NAMED:
        theirs = "coalesce(a.application_name, '') NOT LIKE 'streamer %'"
    if number >= ROLES:
        theirs += " AND coalesce(a.backend_type, 'client backend') = 'client backend'"
    query = _SESSIONS.format(
        pid="pid" if number >= PID else "procpid", application="a.application_name" if number >= NAMED else "''", theirs=theirs
    )
    for row in connection.execute(query.encode()):
        yield Client(*row)


def _require_no_prepared(connection: Connection, node: str) -> None:
    if row := connection.execute(_PREPARED).fetchone():
        gid = sql.Literal(row[0]).as_string(connection).strip()
        raise SourceError(
            f'node "{node}": the prepared transaction {gid} may still be committed',
            f"COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}",
        )


def opening(connection: Connection) -> str:
    """Return how to let clients write by hand."""
    return by_hand(_statement(connection, None))


def by_hand(statement: str) -> str:
    """Return a statement as it must be typed where a session may begin read-only itself, and could not alter anything."""
    return f"BEGIN READ WRITE; {statement}; COMMIT"


def _statement(connection: Connection, value: str | None) -> str:
    (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
    name = sql.Identifier(str(database)).as_string()
    return f"ALTER DATABASE {name} " + (f"RESET {SETTING}" if value is None else f"SET {SETTING} = {value}")


def setting(connection: Connection) -> str | None:
    """Return what is set for the database."""
    if version(connection) >= NAMED:
        place = {"column": "setconfig", "table": "pg_catalog.pg_db_role_setting", "database": "setrole = 0 AND setdatabase"}
    else:
        place = {"column": "datconfig", "table": "pg_catalog.pg_database", "database": "oid"}
    rows: Sequence[tuple[str]] = connection.execute(_CONFIGURED.format(**place).encode()).fetchall()
    return dict(text.split("=", 1) for (text,) in rows).get(SETTING)


def _end(connection: Connection, node: str, moment: datetime | None, seconds: float) -> int:
    """End the sessions that began before a moment, and return how many there were."""
    deadline, ended = time.monotonic() + seconds, set[int]()
    while old := [c for c in _clients(connection) if c.started is None or moment is None or c.started <= moment]:
        if time.monotonic() > deadline:
            raise StreamerError(f'node "{node}": a session does not end: {old[0]}', f"SELECT pg_terminate_backend({old[0].pid})")
        for client in old:
            connection.execute("SELECT pg_terminate_backend(%s)", [client.pid])
            ended.add(client.pid)
        time.sleep(POLL_SECONDS)
    return len(ended)
