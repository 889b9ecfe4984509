"""The PostgreSQL sink: one connection, one target transaction a group, progress first in it.

A commit is asynchronous, as the built-in subscription's is; `durable` therefore asks how far the target's WAL is flushed, and only what
lies before it may be confirmed to the source. An advisory lock held for the session keeps a second daemon away. The session acts as a
replica, so that triggers and foreign keys do not fire, and has a replication origin, so that row versions carry the time of the
original commit; where the role may do neither, a warning says what to grant and the progress row alone tags the transaction.

https://www.postgresql.org/docs/current/replication-origins.html
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import datetime
from typing import Any, Final

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
    "UPDATE streamer.progress SET origin = %s, origin_position = %s, origin_time = coalesce(%s, now()), "
    f"position = coalesce(%s, position), updated = now() WHERE {_EDGE}"
)
ORIGIN_REMEDY: Final = (
    "GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), "
    "pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), "
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO {role}; and see max_replication_slots (max_active_replication_origins)"
)
ORIGINS: Final = 90500  # replication origins and commit timestamps: version 9.5
FLUSH_POSITION: Final = 90600  # pg_current_xlog_flush_location(): version 9.6


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
        if progress is not None:
            self._durable = progress.position
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
            self._record_copy(self._connection, table, position, None)

    def load(self, table: CopyTable, position: LSN, blocks: Iterable[bytes]) -> int:
        """Replace the table's rows, in one transaction on a connection of its own."""
        with self._errors(), self._connect() as connection, connection.transaction():
            self._tag(connection, self._edge.source, position, None, None)
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
            self._record_copy(connection, table.table, position, sent)
        return sent

    def _record_copy(self, connection: Connection, table: TableName, position: LSN, rows: int | None) -> None:
        connection.execute("SET LOCAL synchronous_commit = on")
        connection.execute(
            f"DELETE FROM streamer.copy WHERE {_EDGE} AND schema_name = %s AND table_name = %s",
            [*self._where, table.schema, table.name],
        )
        connection.execute(
            "INSERT INTO streamer.copy (sync, source, target, schema_name, table_name, position, rows) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [*self._where, table.schema, table.name, str(position), rows],
        )

    # -- streaming ---------------------------------------------------------------------------------------------------------------

    def write(self, group: Group) -> Written:
        """Apply the group and its progress in one target transaction."""
        with self._errors():
            fresh = not self._in_transaction
            if fresh:
                self._follow_origin(group.origin.node)
            try:
                return self._attempt(group, fresh)
            except (Unfoldable, *REFUSED):
                self._undo(fresh)
                return self._attempt_one_by_one(group, fresh)

    def _attempt(self, group: Group, fresh: bool) -> Written:
        """Write the net effect; a small group travels in one round trip, commit included."""
        steps = fold(group.changes, lambda relation: self._writer(relation).key)
        with self._connection.pipeline() if all(map(_is_small, steps)) else nullcontext():
            self._enter(group, fresh)
            outcome = self._applier.apply(steps)
            commit = self._commit(group)
        self._committed(group, commit)
        return outcome.written()

    def _attempt_one_by_one(self, group: Group, fresh: bool) -> Written:
        """Write the changes as they were made; what is refused is then known."""
        self._enter(group, fresh)
        outcome = self._applier.replay(group.changes)
        self._committed(group, self._commit(group))
        return outcome.written()

    def _enter(self, group: Group, fresh: bool) -> None:
        """Begin the transaction and write its tag, or mark where this group of an open one begins."""
        origin = group.origin
        if fresh:
            self._connection.execute("BEGIN")
            self._in_transaction = True
            if self._origin is not None:
                self._connection.execute(
                    "SELECT pg_replication_origin_xact_setup(%s, %s)", [str(origin.position), origin.commit_time]
                )
        else:
            self._connection.execute("SAVEPOINT streamer_group")
        self._tag(self._connection, origin.node, origin.position, origin.commit_time, group.position)

    def _tag(self, connection: Connection, origin: str, at: LSN, time: datetime | None, position: LSN | None) -> None:
        """Update the progress row: the first write of every transaction of ours, which tells readers of this WAL where it was made."""
        values = [origin, str(at), time, None if position is None else str(position)]
        connection.execute(_TAG, [*values, *self._where], prepare=True)

    def _commit(self, group: Group) -> psycopg.Cursor[Any] | None:
        """Commit if the group is complete; the cursor will tell how far the target's WAL must be flushed for it."""
        if not group.complete:
            return None
        self._connection.execute("COMMIT")
        return self._connection.execute(f"SELECT {self._insert_position}")

    def _committed(self, group: Group, commit: psycopg.Cursor[Any] | None) -> None:
        if commit is None:
            return
        self._in_transaction = False
        self._applier.committed()
        (needed,) = commit.fetchone() or (None,)
        if needed is None:
            self._durable = group.position  # an old server, where we commit synchronously
        else:
            self._pending.append((group.position, LSN.parse(needed)))

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


def _empty(connection: Connection, table: TableName) -> None:
    """Remove the rows; by DELETE where a foreign key forbids TRUNCATE (it does not fire in a replica session)."""
    if connection.execute(f"SELECT 1 FROM {quoted(table)} LIMIT 1").fetchone() is None:
        return
    try:
        with connection.transaction():
            connection.execute(f"TRUNCATE {quoted(table)}")
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege):
        connection.execute(f"DELETE FROM {quoted(table)}")
