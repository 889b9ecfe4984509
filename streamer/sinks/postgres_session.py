"""One edge's session on a PostgreSQL target: connection, lock, origin, tag, and what of its commits is durable.

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
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Final
from weakref import WeakSet

import psycopg
import structlog
from psycopg import pq, sql

from streamer.copied_ranges import by_table, copied_range
from streamer.errors import SchemaError, SlotError, TakenError, TargetError, start_over
from streamer.model import LSN, NOTHING_SEEN, EdgeName, Group, Seen, SlotIdentity, TableName
from streamer.ports import Progress
from streamer.session import Connection, connect, connect_error, is_denied, reason_of, remedy, reported, version
from streamer.sinks.postgres_apply import REFUSED
from streamer.sinks.postgres_pipeline import PREPARED, Pipeline
from streamer.sinks.postgres_table import quote
from streamer.spare_connections import SpareConnections
from streamer.versions import SOURCE_SEEN, origin_name, read_seen, seen_text

_LOCK_CLASS: Final = zlib.crc32(b"streamer") - (1 << 31)
EDGE: Final = "sync = %s AND source = %s AND target = %s"
_TAG: Final = (
    "UPDATE streamer.progress SET origin = %s, origin_position = %s, origin_time = %s::timestamptz, position = %s, seen = %s, "
    "source_seen = %s, updated = now() WHERE {edge}"
)
_MOVE: Final = "UPDATE streamer.progress SET position = %s, source_seen = %s, updated = now() WHERE {edge}"
# the function fills the place of a statement of its own; it returns an empty value, not NULL
_TAG_WITH_ORIGIN: Final = f"{_TAG} AND pg_replication_origin_xact_setup(%s::pg_lsn, %s::timestamptz) IS NOT NULL"
_GONE: Final = "streamer.progress_is_gone"
"""A setting that nobody has: asking for it undoes a transaction that moved no progress, in whatever pipeline it is."""
_TAGGED: Final = f"WITH tag AS ({{}} RETURNING 1) SELECT CASE count(*) WHEN 0 THEN current_setting('{_GONE}') END FROM tag"
WRITING_CTES: Final = 90100
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
PAGE_HEADER: Final = 24
"""Bytes that begin a page of WAL, but for the first page of a segment. https://www.postgresql.org/docs/current/wal-internals.html"""


class TargetSession:
    """Opened once; `connection` exists from then on."""

    def __init__(self, edge: EdgeName, url: str) -> None:
        self.edge = edge
        self.node = edge.target
        self.where = [edge.sync, edge.source, edge.target]
        # with every transaction it would be three values more to send
        named = EDGE.replace("%s", "{}").format(*(sql.Literal(name).as_string().replace("%", "%%") for name in self.where))
        self._tag, self._tag_with_origin, self._move = (text.format(edge=named) for text in (_TAG, _TAG_WITH_ORIGIN, _MOVE))
        self.connection: Connection
        self.pipeline: Pipeline
        self.log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        #: the replication origin of the session, by its name
        self.origin: str | None = None
        #: the expression for where the target's WAL is written up to, as text
        self.insert_position: str
        self._url = url
        #: more of the same settings, for what is done beside the edge's own work
        self.others = SpareConnections(self.connect)
        #: of each of these three the form that undoes the transaction if it finds no row
        self._checked: dict[str, str] = {}
        self._resources = ExitStack()
        self._sessions: WeakSet[Connection] = WeakSet()
        self._warned = False
        #: whether `cancel` was called: what a server breaks off without that is the wish of somebody else
        self.cancelled = False
        self._durable = LSN(0)
        #: (position, how far the target's WAL must be flushed for it)
        self._pending: deque[tuple[LSN, LSN]] = deque()
        #: what was written last, and its text: consecutive transactions mostly share it
        self._seen: tuple[Seen, str] = (NOTHING_SEEN, "{}")

    # -- opening and closing -----------------------------------------------------------------------------------------------------

    def open(self) -> Progress | None:
        """Connect, take the edge's lock, and return what the target holds of the edge."""
        self._resources.enter_context(closing(self.others))
        self.connection = self._resources.enter_context(closing(self.connect()))
        self.connection.prepared_max = PREPARED
        self.pipeline = Pipeline(self.connection)
        if version(self.connection) >= WRITING_CTES:
            self._checked = {text: _TAGGED.format(text) for text in (self._tag, self._tag_with_origin, self._move)}
        self.insert_position, self._flush_position = _positions(version(self.connection))
        self._may_have_origin = version(self.connection) >= ORIGINS
        with self.errors():
            self._lock()
            progress = self._read_progress()
            if progress is not None:  # our predecessor's last commits may not be flushed yet
                (inserted,) = self.connection.execute(f"SELECT {self.insert_position}").fetchone() or (None,)
                self.committed(progress.position, inserted)
        return progress

    def connect(self) -> Connection:
        """Return one more connection with the same settings."""
        connection = connect(self.node, self._url, application=f"streamer {self.edge}")
        with reported(self.node):
            connection.execute("SET search_path = pg_catalog")
            connection.execute("SET enable_hashjoin = off")
            connection.execute("SET enable_mergejoin = off")
            if version(connection) >= FLUSH_POSITION:
                connection.execute("SET synchronous_commit = off")
            self._act_as_replica(connection)
        self._sessions.add(connection)
        return connection

    def _act_as_replica(self, connection: Connection) -> None:
        try:
            connection.execute("SET session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            if not self._warned:
                role = connection.info.user
                self.log.warning(
                    "triggers_will_fire",
                    reason=f'role "{role}" may not set session_replication_role on "{self.node}"',
                    remedy=f"GRANT SET ON PARAMETER session_replication_role TO {quote(role)} (15 and later), or use a superuser",
                )
            self._warned = True

    def _lock(self) -> None:
        key = zlib.crc32(str(self.edge).encode()) - (1 << 31)
        row = self.connection.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", [_LOCK_CLASS, key]).fetchone()
        if row and not row[0]:
            raise TakenError(
                f'edge {self.edge} is written by another session on "{self.node}"',
                "streamer takes over when the other daemon ends",
            )

    def _read_progress(self) -> Progress | None:
        try:
            row = self.connection.execute(
                f"SELECT system_identifier, database, slot, position, {SOURCE_SEEN} FROM streamer.progress WHERE {EDGE}", self.where
            ).fetchone()
            copied = self.connection.execute(
                f"SELECT schema_name, table_name, position FROM streamer.copy WHERE {EDGE}", self.where
            ).fetchall()
            ranges = self.connection.execute(
                f"SELECT schema_name, table_name, bounds, position, rows FROM streamer.copied_part WHERE {EDGE}", self.where
            ).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise SchemaError(f'node "{self.node}" has no schema streamer, or an older one', "run: streamer setup") from None
        except psycopg.errors.UndefinedColumn:
            raise SchemaError(f'schema streamer on "{self.node}" is of an older version', "run: streamer setup") from None
        if row is None:
            return None
        return Progress(
            SlotIdentity(*row[:3]),
            LSN.parse(row[3]),
            {TableName(schema, name): LSN.parse(at) for schema, name, at in copied},
            read_seen(row[4]),
            by_table((TableName(schema, name), copied_range(*of)) for schema, name, *of in ranges),
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Tell the target's no from trouble with the connection."""
        try:
            yield
        except REFUSED as error:
            if _GONE in str(error):
                raise self._progress_is_gone() from None
            hint = (
                "grant it to the role of the url; the statement: streamer check"
                if is_denied(error)
                else "cure it on the target; streamer tries again by itself"
            )
            hint = remedy(self.node, error, hint)
            raise TargetError(f'edge {self.edge}: node "{self.node}" refuses: {reason_of(error)}', hint) from error
        except psycopg.Error as error:
            raise connect_error(self.node, error) from error

    def _progress_is_gone(self) -> SlotError:
        return SlotError(
            f'edge {self.edge}: its row in streamer.progress on "{self.node}" is gone: what is there is not known any more',
            f"don't touch schema streamer; {start_over(self.edge.sync)}",
        )

    def cancel(self) -> None:
        """Have the server break off what our sessions are doing; it would wait for a lock even after we are gone."""
        self.cancelled = True
        for connection in list(self._sessions):
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=CANCEL_SECONDS)

    def close(self) -> None:
        """Disconnect; the server undoes an open transaction."""
        self._resources.close()

    # -- transactions ------------------------------------------------------------------------------------------------------------

    def follow_origin(self, node: str) -> bool:
        """Make the session's replication origin that of the node where the next transaction was made; False if that is denied."""
        name = origin_name(self.edge.sync, self.edge.target, self.edge.source, node)
        if name == self.origin or not self._may_have_origin:
            return self._may_have_origin
        execute = self.connection.execute
        try:
            self.leave_origin()
            if execute("SELECT pg_replication_origin_oid(%s)", [name]).fetchone() == (None,):
                execute("SELECT pg_replication_origin_create(%s)", [name])
            execute("SELECT pg_replication_origin_session_setup(%s)", [name])
            self.origin = name
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ConfigurationLimitExceeded) as error:
            self._may_have_origin = False
            self.log.warning(
                "no_replication_origin",
                reason=reason_of(error),
                remedy=ORIGIN_REMEDY.format(role=self.connection.info.user),
            )
        return self._may_have_origin

    def leave_origin(self) -> None:
        """Have no replication origin until the next `follow_origin`."""
        if self.origin is not None:
            self.connection.execute("SELECT pg_replication_origin_session_reset()")
            self.origin = None

    def tag(self, group: Group) -> tuple[str, list[str | None]]:
        """Return the first write of a group's transaction, the progress row: readers of this WAL know by it where it was made.

        Where nothing but the position moves, the row says again what the last transaction was.
        """
        origin = group.origin
        if group.idle:
            return self._move, [str(group.position), self._text(group.seen)]
        position, time = str(origin.position), origin.commit_time.isoformat()
        # what the source itself made was made with knowledge of just that
        source_seen = "" if origin.node == self.edge.source else seen_text(group.seen)
        values: list[str | None] = [origin.node, position, time, str(group.position), self._text(origin.seen), source_seen]
        return (self._tag, values) if self.origin is None else (self._tag_with_origin, [*values, position, time])

    def checked_tag(self, group: Group) -> tuple[str, list[str | None]]:
        """Return the tag as a statement that undoes the transaction if there is no progress row that could move."""
        statement, values = self.tag(group)
        return self._checked.get(statement, statement), values

    def _text(self, seen: Seen) -> str:
        if seen is not self._seen[0]:
            self._seen = (seen, seen_text(seen))
        return self._seen[1]

    def undo(self, statement: str) -> None:
        """Execute a ROLLBACK, of the transaction or to a savepoint. Raises psycopg.Error.

        After its own psycopg would deallocate all prepared statements, which are not part of the transaction; the pipeline's too.
        """
        result = self.connection.ask(statement)
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace"))

    # -- durability --------------------------------------------------------------------------------------------------------------

    def committed(self, position: LSN, inserted: str | None) -> None:
        """Take `position` for durable once the target's WAL is flushed up to `inserted`, what `insert_position` gave since."""
        if inserted is None:
            self._durable = position  # an old server, where we commit synchronously
        else:
            self._pending.append((position, end_of_record(LSN.parse(inserted))))

    def begun(self, position: LSN) -> None:
        """The edge begins at `position`, durably."""
        self._durable = position

    def durable(self) -> LSN:
        """Return the position up to which everything written survives a crash of the target."""
        if self._pending:
            with self.errors():
                (text,) = self.connection.execute(f"SELECT {self._flush_position}").fetchone() or ("0/0",)
            flushed = LSN.parse(text)
            while self._pending and self._pending[0][1] <= flushed:
                self._durable = self._pending.popleft()[0]
        return self._durable


def _positions(number: int) -> tuple[str, str]:
    """The expressions for where the WAL is written and flushed up to; NULL where the server cannot tell the latter."""
    if number >= 100000:
        return "pg_current_wal_insert_lsn()::text", "pg_current_wal_flush_lsn()::text"
    if number >= FLUSH_POSITION:
        return "pg_current_xlog_insert_location()::text", "pg_current_xlog_flush_location()::text"
    return "NULL::text", "NULL::text"


def end_of_record(inserted: LSN) -> LSN:
    """Where the last record ends. Where a page is full the server tells the place for the next one, past that page's header.

    The trap: the first page of a segment has a header of 40 bytes, and 40 bytes into any other page a record may end that began on
    the page before. So there the place is taken as it is told: it is flushed a little later, never too early.
    """
    return LSN(inserted - PAGE_HEADER) if inserted % WAL_BLOCK == PAGE_HEADER else inserted
