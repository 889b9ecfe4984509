"""The PostgreSQL sink: one connection, one target transaction a group, progress first in it.

A commit is asynchronous, as the built-in subscription's is; `durable` therefore asks how far the target's WAL is flushed, and
only what lies before it may be confirmed to the source. An advisory lock held for the session keeps a second daemon away. The
session acts as a replica, so that triggers and foreign keys do not fire, and has a replication origin, so that row versions carry
the time of the original commit; where the role may do neither, a warning says what to grant and the progress row alone tags the
transaction.

https://www.postgresql.org/docs/current/replication-origins.html
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import Any, Final
from weakref import WeakSet

import psycopg
import structlog

from streamer.errors import ConnectError, SchemaError, TargetError
from streamer.model import LSN, EdgeName, Group, Relation, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, Written
from streamer.session import Connection, connect, connect_error, is_denied, reason_of, reported, version
from streamer.sinks.net import SetWise, Step, Unfoldable, fold
from streamer.sinks.postgres_apply import FEW_ROWS, REFUSED, Applier
from streamer.sinks.postgres_table import TableWriter, copy_into, quote, quoted, read_target

_LOCK_CLASS: Final = zlib.crc32(b"streamer") - (1 << 31)
_EDGE: Final = "sync = %s AND source = %s AND target = %s"
_TAG: Final = (
    "UPDATE streamer.progress SET origin = %s, origin_position = %s, origin_time = %s, position = %s, updated = now() "
    f"WHERE {_EDGE}"
)
_ORIGIN: Final = "SELECT pg_replication_origin_xact_setup(%s, %s)"
_COPIED: Final = f"{_EDGE} AND schema_name = %s AND table_name = %s"
_COPY_AGAIN: Final = (
    f"UPDATE streamer.copy SET rows = NULL, position = %s, origin = %s, origin_position = %s, origin_time = now() WHERE {_COPIED}"
)
_COPY: Final = (
    "INSERT INTO streamer.copy (position, origin, origin_position, origin_time, sync, source, target, schema_name, table_name) "
    "VALUES (%s, %s, %s, now(), %s, %s, %s, %s, %s)"
)
ORIGIN_REMEDY: Final = (
    "GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), "
    "pg_replication_origin_drop(text), pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), "
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO {role}; and see max_replication_slots "
    "(max_active_replication_origins); it is granted in each database"
)
ORIGINS: Final = 90500  # replication origins and commit timestamps: version 9.5
FLUSH_POSITION: Final = 90600  # pg_current_xlog_flush_location(): version 9.6
CANCEL_SECONDS: Final = 1.0
"""How long a server may take to accept that a session's work be broken off."""
WAL_BLOCK: Final = 8192
PAGE_HEADERS: Final = (24, 40)
"""Bytes that begin a page of WAL, and the first page of a segment. https://www.postgresql.org/docs/current/wal-internals.html"""


class PostgresSink:
    """Implements ports.Sink for a PostgreSQL database."""

    parallel_loads = True

    def __init__(self, edge: EdgeName, url: str) -> None:
        self._edge = edge
        self._node = edge.target
        self._url = url
        self._where = [edge.sync, edge.source, edge.target]
        self._writers: dict[Relation, TableWriter] = {}
        self._connection: Connection  # from open() on
        self._resources = ExitStack()
        self._sessions: WeakSet[Connection] = WeakSet()
        self._in_transaction = False
        self._warned = False
        self._origin: str | None = None
        self._durable = LSN(0)
        #: (position, how far the target's WAL must be flushed for it)
        self._pending: deque[tuple[LSN, LSN]] = deque()
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)

    # -- opening -----------------------------------------------------------------------------------------------------------------

    def open(self) -> Progress | None:
        """Connect, take the edge's lock, and return what the target holds of it."""
        self._connection = self._resources.enter_context(closing(self._connect()))
        self._insert_position, self._flush_position = _positions(version(self._connection))
        self._may_have_origin = version(self._connection) >= ORIGINS
        self._applier = Applier(self._connection, self._node, self._writer)
        with self._errors():
            self._lock()
            progress = self._read_progress()
            if progress is not None:  # our predecessor's last commits may not be flushed yet
                self._await_flush(progress.position, self._connection.execute(f"SELECT {self._insert_position}"))
        return progress

    def _connect(self) -> Connection:
        connection = connect(self._node, self._url, application=f"streamer {self._edge}")
        with reported(self._node):
            connection.execute("SET search_path = pg_catalog")
            connection.execute("SET enable_hashjoin = off")
            connection.execute("SET enable_mergejoin = off")
            if version(connection) >= FLUSH_POSITION:
                connection.execute("SET synchronous_commit = off")
                connection.execute("SET idle_in_transaction_session_timeout = 0")
            self._act_as_replica(connection)
        self._sessions.add(connection)
        return connection

    def _act_as_replica(self, connection: Connection) -> None:
        try:
            connection.execute("SET session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            if not self._warned:
                role = connection.info.user
                self._log.warning(
                    "triggers_will_fire",
                    reason=f'role "{role}" may not set session_replication_role on "{self._node}"',
                    remedy=f"GRANT SET ON PARAMETER session_replication_role TO {quote(role)} (15 and later), or use a superuser",
                )
            self._warned = True

    def _lock(self) -> None:
        key = zlib.crc32(str(self._edge).encode()) - (1 << 31)
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", [_LOCK_CLASS, key]).fetchone()
        if row and not row[0]:
            raise ConnectError(
                f'edge {self._edge} is written by another session on "{self._node}"',
                "end the other daemon; streamer takes over by itself",
            )

    def _read_progress(self) -> Progress | None:
        try:
            row = self._connection.execute(
                f"SELECT system_identifier, database, slot, position FROM streamer.progress WHERE {_EDGE}", self._where
            ).fetchone()
            copied = self._connection.execute(
                f"SELECT schema_name, table_name, position FROM streamer.copy WHERE {_EDGE}", self._where
            ).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise SchemaError(f'node "{self._node}" has no schema streamer', "run: streamer setup") from None
        if row is None:
            return None
        return Progress(
            SlotIdentity(*row[:3]),
            LSN.parse(row[3]),
            {TableName(schema, name): LSN.parse(at) for schema, name, at in copied},
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell the target's no from trouble with the connection."""
        try:
            yield
        except REFUSED as error:
            hint = (
                "grant it to the role of the url" if is_denied(error) else "cure it on the target; streamer tries again by itself"
            )
            raise TargetError(f'edge {self._edge}: node "{self._node}" refuses: {reason_of(error)}', hint) from error
        except psycopg.Error as error:
            raise connect_error(self._node, error) from error

    # -- before streaming --------------------------------------------------------------------------------------------------------

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        with self._errors(), self._connection.transaction():
            self._connection.execute("SET LOCAL synchronous_commit = on")
            self._connection.execute(
                "INSERT INTO streamer.progress (sync, source, target, system_identifier, database, slot, position, origin, "
                "origin_position, origin_time) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, now())",
                [
                    *self._where,
                    slot.system_identifier,
                    slot.database,
                    slot.slot,
                    str(position),
                    self._edge.source,
                    str(position),
                ],
            )
        self._durable = position

    def has(self, table: TableName) -> bool:
        """Return whether the target has this table."""
        with self._errors():
            try:
                read_target(self._connection, self._node, table)
            except SchemaError:
                return False
        return True

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows."""
        with self._errors():
            read_target(self._connection, self._node, table)
            return self._connection.execute(f"SELECT 1 FROM {quoted(table)} LIMIT 1").fetchone() is None

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        with self._errors(), self._connection.transaction():
            self._record_copy(self._connection, table, position)

    def load(self, table: CopyTable, position: LSN, blocks: Iterable[bytes]) -> int:
        """Replace the table's rows, in one transaction on a connection of its own."""
        with self._errors(), self._connect() as connection, connection.transaction():
            self._record_copy(connection, table.table, position)
            read_target(connection, self._node, table.table)
            _empty(connection, table.table)
            sent = 0
            cursor = connection.cursor()
            with cursor.copy(copy_into(quoted(table.table), [quote(c) for c in table.columns])) as copy:
                for block in blocks:
                    copy.write(block)
                    sent += block.count(b"\n")
            if cursor.rowcount != sent:
                raise TargetError(f'table "{table.table}" on "{self._node}" took {cursor.rowcount} of {sent} copied rows')
            connection.execute(f"UPDATE streamer.copy SET rows = %s WHERE {_COPIED}", [sent, *self._where, *_parts(table.table)])
        return sent

    def _record_copy(self, connection: Connection, table: TableName, position: LSN) -> None:
        """Write the table's record: in a copy the first write, which tells readers of this WAL that it is not a local change."""
        connection.execute("SET LOCAL synchronous_commit = on")
        values = [str(position), self._edge.source, str(position), *self._where, *_parts(table)]
        if connection.execute(_COPY_AGAIN, values).rowcount == 0:
            connection.execute(_COPY, values)

    # -- streaming ---------------------------------------------------------------------------------------------------------------

    def write(self, group: Group) -> Written:
        """Apply the group and its progress in one target transaction."""
        with self._errors():
            fresh = not self._in_transaction
            if fresh:
                self._follow_origin(group.origin.node)
            with suppress(Unfoldable):
                steps = fold(group.changes, lambda relation: self._writer(relation).key)
                try:
                    return self._write_steps(group, fresh, steps)
                except REFUSED:
                    self._undo(fresh)
            return self._write_one_by_one(group, fresh)

    def _write_steps(self, group: Group, fresh: bool, steps: Sequence[Step]) -> Written:
        """Write the net effect; a small group travels in one round trip, commit included."""
        with self._connection.pipeline() if all(map(_is_small, steps)) else nullcontext():
            self._enter(group, fresh)
            outcome = self._applier.apply(steps)
            commit = self._leave(group, fresh)
        self._committed(group, commit)
        return outcome.written()

    def _write_one_by_one(self, group: Group, fresh: bool) -> Written:
        """Write the changes as they were made; what is refused is then known."""
        self._enter(group, fresh)
        outcome = self._applier.replay(group.changes)
        self._committed(group, self._leave(group, fresh))
        return outcome.written()

    def _enter(self, group: Group, fresh: bool) -> None:
        """Begin the transaction, or mark where this group of an open one begins, and write its tag: the progress row.

        It is the first write of the transaction, so that readers of this WAL know from the first change where it was made.
        """
        origin = group.origin
        if not fresh:
            self._connection.execute("SAVEPOINT streamer_group")
        else:
            self._connection.execute("BEGIN")
            self._in_transaction = True
            if self._origin is not None:
                self._connection.execute(_ORIGIN, [str(origin.position), origin.commit_time])
        tag = [origin.node, str(origin.position), origin.commit_time, str(group.position)]
        self._connection.execute(_TAG, [*tag, *self._where], prepare=True)

    def _leave(self, group: Group, fresh: bool) -> psycopg.Cursor[Any] | None:
        """Commit if the group is complete; the cursor will tell how far the target's WAL must be flushed for it."""
        if group.complete:
            self._connection.execute("COMMIT")
            return self._connection.execute(f"SELECT {self._insert_position}")
        if not fresh:
            self._connection.execute("RELEASE SAVEPOINT streamer_group")
        return None

    def _committed(self, group: Group, commit: psycopg.Cursor[Any] | None) -> None:
        if commit is None:
            return
        self._in_transaction = False
        self._applier.committed()
        self._await_flush(group.position, commit)

    def _await_flush(self, position: LSN, inserted: psycopg.Cursor[Any]) -> None:
        """Take `position` for durable once the target's WAL is flushed up to what the cursor tells."""
        (needed,) = inserted.fetchone() or (None,)
        if needed is None:
            self._durable = position  # an old server, where we commit synchronously
        else:
            self._pending.append((position, _end_of_record(LSN.parse(needed))))

    def _undo(self, fresh: bool) -> None:
        self._connection.execute("ROLLBACK" if fresh else "ROLLBACK TO SAVEPOINT streamer_group")
        self._in_transaction = not fresh
        self._applier.forget_stages()

    def _follow_origin(self, node: str) -> None:
        """Make the session's replication origin that of the node where the next transaction was made."""
        name = f"streamer:{self._edge.sync}:{self._edge.target}:{self._edge.source}:{node}"
        if name == self._origin or not self._may_have_origin:
            return
        execute = self._connection.execute
        try:
            if self._origin is not None:
                execute("SELECT pg_replication_origin_session_reset()")
                self._origin = None
            if execute("SELECT pg_replication_origin_oid(%s)", [name]).fetchone() == (None,):
                execute("SELECT pg_replication_origin_create(%s)", [name])
            execute("SELECT pg_replication_origin_session_setup(%s)", [name])
            self._origin = name
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ConfigurationLimitExceeded) as error:
            self._may_have_origin = False
            self._log.warning(
                "no_replication_origin",
                reason=reason_of(error),
                remedy=ORIGIN_REMEDY.format(role=self._connection.info.user),
            )

    def _writer(self, relation: Relation) -> TableWriter:
        writer = self._writers.get(relation)
        if writer is None:
            writer = TableWriter(relation, read_target(self._connection, self._node, relation.table), self._node)
            self._writers[relation] = writer
        return writer

    def durable(self) -> LSN:
        """Return the position up to which everything written survives a crash of the target."""
        if self._pending:
            with self._errors():
                (text,) = self._connection.execute(f"SELECT {self._flush_position}").fetchone() or ("0/0",)
            flushed = LSN.parse(text)
            while self._pending and self._pending[0][1] <= flushed:
                self._durable = self._pending.popleft()[0]
        return self._durable

    def cancel(self) -> None:
        """Have the server break off what our sessions are doing; it would wait for a lock even after we are gone."""
        for connection in list(self._sessions):
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=CANCEL_SECONDS)

    def close(self) -> None:
        """Disconnect; the server undoes an open transaction."""
        self._resources.close()


def _is_small(step: Step) -> bool:
    return isinstance(step, SetWise) and max(len(step.deletes), len(step.updates), len(step.inserts)) <= FEW_ROWS


def _positions(number: int) -> tuple[str, str]:
    """The expressions for where the WAL is written and flushed up to; NULL where the server cannot tell the latter."""
    if number >= 100000:
        return "pg_current_wal_insert_lsn()::text", "pg_current_wal_flush_lsn()::text"
    if number >= FLUSH_POSITION:
        return "pg_current_xlog_insert_location()::text", "pg_current_xlog_flush_location()::text"
    return "NULL::text", "NULL::text"


def _end_of_record(inserted: LSN) -> LSN:
    """Where the last record ends. Where a page is full the server tells the place for the next one, past that page's header."""
    return LSN(inserted - offset) if (offset := inserted % WAL_BLOCK) in PAGE_HEADERS else inserted


def _parts(table: TableName) -> tuple[str, str]:
    return table.schema, table.name


def _empty(connection: Connection, table: TableName) -> None:
    """Remove the rows; by DELETE where a foreign key forbids TRUNCATE (it does not fire in a replica session)."""
    if connection.execute(f"SELECT 1 FROM {quoted(table)} LIMIT 1").fetchone() is None:
        return
    try:
        with connection.transaction():
            connection.execute(f"TRUNCATE {quoted(table)}")
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege):
        connection.execute(f"DELETE FROM {quoted(table)}")
