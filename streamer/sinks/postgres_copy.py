"""What a PostgreSQL target does before streaming: begin an edge's progress, and load tables, each in one transaction.

The first write of a load is the table's record in streamer.copy, which tells readers of this database's WAL that the transaction is
not a local one; progress would be the obvious place, but tables that are loaded side by side would wait for each other there.

Rows that applications write while a table is loaded stay, and win over copied ones with the same key: they are newer, and travel to
the source by their own stream. Only a copy that is to replace everything removes rows.

The trap, with several sources: a copied row must not look newer than any change that comes later. With the time of copying it
would refuse what the source does meanwhile; with the snapshot's time, what another source had done before that and what had not
reached the snapshot. So copied rows are stamped with OLDEST, and every change from elsewhere finds them older. Where that would be
wrong, because a change may still come that is older than the row, the row's true version travels with it (`postgres_copied`).

https://www.postgresql.org/docs/current/sql-copy.html
"""

from __future__ import annotations

import functools
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

import psycopg

from streamer.copytext import rows_in
from streamer.errors import ApplyError, SchemaError, TargetError
from streamer.model import LSN, POSTGRES_EPOCH, Origin, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, RowVersion, Start
from streamer.session import Connection, version
from streamer.sinks.policy import Key, Rules
from streamer.sinks.postgres_apply import refusal_of_a_row
from streamer.sinks.postgres_copied import CopiedVersions
from streamer.sinks.postgres_ranges import PostgresRanges
from streamer.sinks.postgres_session import EDGE, TargetSession
from streamer.sinks.postgres_table import TargetTable, quote, quoted, read_target
from streamer.sinks.postgres_tombstones import remove_keys
from streamer.sinks.postgres_writer import copy_into
from streamer.sinks.quarantine import OnError, stops
from streamer.sinks.target_clock import TargetClock
from streamer.versions import OLDEST, Versions, choose_versions

UPSERT: Final = 90500  # ON CONFLICT DO NOTHING
IDENTITY: Final = 100000  # OVERRIDING SYSTEM VALUE
STAGE: Final = "pg_temp.streamer_load"
_LOCK_CLASS: Final = zlib.crc32(b"streamer joins") - (1 << 31)

_COPIED: Final = f"{EDGE} AND schema_name = %s AND table_name = %s"
_COPY_AGAIN: Final = (
    f"UPDATE streamer.copy SET rows = NULL, position = %s, origin = %s, origin_position = %s, origin_time = %s WHERE {_COPIED}"
)
_COPY: Final = (
    "INSERT INTO streamer.copy (position, origin, origin_position, origin_time, sync, source, target, schema_name, table_name) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_OF_TARGET: Final = "sync = %s AND target = %s AND schema_name = %s AND table_name = %s"
_BY_COPY: Final = f"SELECT bool_or(by_copy) FROM streamer.first_rows WHERE {_OF_TARGET}"
_HAS_FIRST_ROWS: Final = f"DELETE FROM streamer.first_rows WHERE {_OF_TARGET}"
_HAS_BEGUN: Final = f"DELETE FROM streamer.first_rows WHERE {_COPIED}"
_BEGIN: Final = (
    "INSERT INTO streamer.progress (sync, source, target, system_identifier, database, slot, position, origin, origin_position, "
    "origin_time) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_FOLLOW: Final = f"UPDATE streamer.progress SET system_identifier = %s WHERE {EDGE}"
_ALL_PROGRESS: Final = (
    "SELECT source, system_identifier, database, slot, position FROM streamer.progress WHERE sync = %s AND target = %s"
)
_ALL_COPIED: Final = "SELECT source, schema_name, table_name, position FROM streamer.copy WHERE sync = %s AND target = %s"


class TableLoader:
    """Begins one edge and loads its tables. With `masters`, several nodes write them; it is then the seconds that the clock of
    another one may be ahead, `days` is for how long versions are kept, and `rules` tells which columns are merged.
    """

    def __init__(
        self,
        session: TargetSession,
        masters: float | None = None,
        days: int = 7,
        on_error: OnError = stops,
        rules: Callable[[TableName], Rules] = lambda table: Rules("latest"),
    ) -> None:
        self._session = session
        self._node = session.node
        self._source = session.edge.source
        self._connection = session.connection
        self._where = session.where
        self._skew = masters
        self._days = timedelta(days=days)
        self._rules = rules
        self._locks: set[str] = set()
        #: what records tables that are loaded in ranges
        self.ranges = PostgresRanges(session, self._record_own, functools.partial(_empty, gently=False), on_error)

    # -- records -----------------------------------------------------------------------------------------------------------------

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        identity = [slot.system_identifier, slot.database, slot.slot]
        with self._session.errors(), self._connection.transaction():
            self._connection.execute("SET LOCAL synchronous_commit = on")
            at = str(position)
            self._connection.execute(_BEGIN, [*self._where, *identity, at, self._source, at, POSTGRES_EPOCH])

    def follow(self, slot: SlotIdentity) -> None:
        """Update the edge's progress row."""
        with self._session.errors(), self._connection.transaction():
            self._connection.execute("SET LOCAL synchronous_commit = on")
            self._connection.execute(_FOLLOW, [slot.system_identifier, *self._where])

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return what the target holds of all edges of the sync that end here."""
        of = [self._where[0], self._where[2]]
        copied: dict[str, dict[TableName, LSN]] = defaultdict(dict)
        with self._session.errors():
            for source, schema, table, position in self._connection.execute(_ALL_COPIED, of):
                copied[source][TableName(schema, table)] = LSN.parse(position)
            rows = self._connection.execute(_ALL_PROGRESS, of).fetchall()
        return {row[0]: Progress(SlotIdentity(*row[1:4]), LSN.parse(row[4]), copied[row[0]]) for row in rows}

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        with self._session.errors(), self._connection.transaction():
            self._record_own(self._connection, table, position)
            if self._skew is not None:
                self._connection.execute(_HAS_BEGUN, [*self._where, *_parts(table)])

    def leave(self, table: TableName) -> None:
        """Delete the table's record."""
        with self._session.errors(), self._connection.transaction():
            self._connection.execute("SET LOCAL synchronous_commit = on")
            self._connection.execute(f"DELETE FROM streamer.copy WHERE {_COPIED}", [*self._where, *_parts(table)])

    def _record(self, connection: Connection, source: str, table: TableName, position: LSN, time: datetime) -> None:
        """Write the table's record: in a copy the first write, which tells readers of this WAL that it is not a local change."""
        connection.execute("SET LOCAL synchronous_commit = on")
        sync, _, target = self._where
        values = [str(position), source, str(position), time, sync, source, target, *_parts(table)]
        if connection.execute(_COPY_AGAIN, values).rowcount == 0:
            connection.execute(_COPY, values)

    def _record_own(self, connection: Connection, table: TableName, position: LSN) -> None:
        self._record(connection, self._source, table, position, POSTGRES_EPOCH)

    # -- locks -------------------------------------------------------------------------------------------------------------------

    def try_lock(self, name: str) -> bool:
        """Take an advisory lock for the session; it is one lock, however often it is taken."""
        if name not in self._locks and self._advisory("pg_try_advisory_lock", name):
            self._locks.add(name)
        return name in self._locks

    def unlock(self, name: str) -> None:
        """Give it back, if we have it."""
        if name in self._locks:
            self._advisory("pg_advisory_unlock", name)
            self._locks.discard(name)

    def _advisory(self, function: str, name: str) -> bool:
        key = zlib.crc32(f"{self._where[0]}: {self._where[2]}: {name}".encode()) - (1 << 31)
        with self._session.errors():
            query = f"SELECT {function}(%s::int, %s::int)"
            return self._connection.execute(query.encode(), [_LOCK_CLASS, key]).fetchone() == (True,)

    # -- tables ------------------------------------------------------------------------------------------------------------------

    def has(self, table: TableName) -> bool:
        """Return whether the target has this table."""
        with self._session.errors():
            try:
                read_target(self._connection, self._node, table)
            except SchemaError:
                return False
        return True

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows; of one that had none when `setup` looked, whether a copy brings them."""
        with self._session.errors():
            empty = _is_empty(self._connection, read_target(self._connection, self._node, table))
            by_copy = self._by_copy(table)
            return empty if by_copy is None else by_copy

    def _by_copy(self, table: TableName) -> bool | None:
        """Whether the first rows of the table are still to come, and by a copy; None if that is not known, as of a sync with one
        source."""
        if self._skew is None:
            return None
        row = self._connection.execute(_BY_COPY, self._of_target(table)).fetchone()
        return row[0] if row else None

    def _of_target(self, table: TableName) -> list[str]:
        sync, _, target = self._where
        return [sync, target, *_parts(table)]

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, in one transaction."""
        with self._session.errors(), self._refusals(table.table), self._loading(start) as connection:
            if start.within is not None:
                with connection.transaction():
                    target = read_target(connection, self._node, table.table)
                    write = functools.partial(self._copy, connection, table, quoted(table.table), blocks)
                    return self.ranges.load(connection, target, start.within, start, write)
            sent = self._load_untouched(connection, table, start, blocks)
            return self._merge(connection, table, start, blocks) if sent is None else sent

    def _load_untouched(self, connection: Connection, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int | None:
        """Write the rows, in one transaction; None if there are others that they must be compared with."""
        with connection.transaction():
            target = self._held(connection, table, start)
            if not self._is_untouched(connection, target, start):
                return None
            self._begin_load(connection, table, target, start)
            sent = self._copy(connection, table, quoted(table.table), blocks)
            copied = self._copied(connection, target)
            if copied is not None:
                copied.stage(self._true_versions(target, start, None))
            self._end_load(connection, table, start, copied, sent)
            return sent

    def _held(self, connection: Connection, table: CopyTable, start: Start) -> TargetTable:
        """The target's table, where nobody else writes until the transaction ends."""
        if not start.replace:
            connection.execute(f"LOCK TABLE {quoted(table.table)} IN SHARE ROW EXCLUSIVE MODE")
        return read_target(connection, self._node, table.table)

    def _begin_load(self, connection: Connection, table: CopyTable, target: TargetTable, start: Start) -> None:
        self._record(connection, self._source, table.table, start.position, start.time)
        for source, position in start.others.items():
            self._record(connection, source, table.table, position, POSTGRES_EPOCH)
        if start.replace:
            _empty(connection, target, gently=start.gently)

    def _end_load(self, connection: Connection, table: CopyTable, start: Start, copied: CopiedVersions | None, sent: int) -> None:
        if copied is not None:
            copied.write()
        if self._skew is not None:
            connection.execute(_HAS_FIRST_ROWS, self._of_target(table.table))
        connection.execute(f"UPDATE streamer.copy SET rows = %s WHERE {_COPIED}", [sent, *self._where, *_parts(table.table)])
        self._stamp(connection, start)

    def _copied(self, connection: Connection, target: TargetTable) -> CopiedVersions | None:
        if self._skew is None or not target.keys:
            return None
        rules = self._rules(target.table) if self._by_copy(target.table) else None
        return CopiedVersions(connection, target, self._versions(), rules)

    @contextmanager
    def _refusals(self, table: TableName) -> Iterator[None]:
        """Tell a row that the target does not take from other trouble."""
        try:
            yield
        except psycopg.Error as error:
            if (reason := refusal_of_a_row(error)) is None:
                raise
            raise ApplyError(
                f'table "{table}" on "{self._node}" refused a copied row: {reason}',
                "give the target's table the constraints of the source's, or correct the row; streamer copies again by itself",
            ) from error

    @contextmanager
    def _loading(self, start: Start) -> Iterator[Connection]:
        """The connection for a load: one for itself, or the edge's, because only one session can have a replication origin."""
        if self._skew is not None:
            self._session.follow_origin(self._source)
            yield self._connection
            return
        with self._session.others.lent() as connection:
            yield connection

    def _stamp(self, connection: Connection, start: Start) -> None:
        """Give the copied rows their version. What is seen here afterwards is in the past of the target's clock."""
        if self._skew is None:
            return
        stamp = Origin(self._source, start.position, OLDEST)
        if self._session.follow_origin(self._source):
            connection.execute("SELECT pg_replication_origin_xact_setup(%s, %s)", [str(start.position), OLDEST])
        if (note := self._versions().stamp(stamp)) is not None:
            connection.execute(*note)
        self._wait_for_clock(connection, start)

    def _wait_for_clock(self, connection: Connection, start: Start) -> None:
        if self._skew is not None:
            clock = TargetClock(self._session.edge, connection, self._skew)
            clock.wait_for(Origin(self._source, start.position, start.time), lambda: False)

    def _versions(self) -> Versions:
        """How to ask this target; the session's origin has been set up."""
        return choose_versions(self._connection, self._node, has_origins=self._session.origin is not None)

    def _true_versions(self, target: TargetTable, start: Start, here: datetime | None) -> Iterable[RowVersion]:
        """The versions of rows that may matter; older ones than tombstones are kept cannot."""
        return () if start.versions is None else start.versions(target.keys[0], start.time - self._days, here)

    def _copy(self, connection: Connection, table: CopyTable, into: str, blocks: Iterable[bytes]) -> int:
        sent = 0
        cursor = connection.cursor()
        with cursor.copy(copy_into(into, [quote(c) for c in table.columns])) as copy:
            for block in blocks:
                copy.write(block)
                sent += rows_in(block)
        if cursor.rowcount != sent:
            raise TargetError(f'table "{table.table}" on "{self._node}" took {cursor.rowcount} of {sent} copied rows')
        return sent

    def _merge(self, connection: Connection, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Add those rows whose keys are not there; of a key that was written, or deleted, on both sides the later version stays.

        Of two keys with one unique value the later stays as well. The other one is removed by a local transaction first, so that
        all nodes hear of it: those that have seen more or less of both might decide otherwise."""
        columns = ", ".join(map(quote, table.columns))
        stage = STAGE.removeprefix("pg_temp.")
        _drop_stage(connection)
        connection.execute(f"CREATE TEMPORARY TABLE {stage} AS SELECT {columns} FROM {quoted(table.table)} WITH NO DATA".encode())
        sent = self._copy(connection, table, STAGE, blocks)
        self._wait_for_clock(connection, start)  # what is removed now must be later than all that was copied
        while lost := self._add_staged(connection, table, start, sent):
            with self._session.others.lent() as other:
                remove_keys(other, read_target(other, self._node, table.table), lost)
            self._session.log.warning("unique_losers_removed", table=str(table.table), rows=len(lost))
        _drop_stage(connection)
        return sent

    def _add_staged(self, connection: Connection, table: CopyTable, start: Start, sent: int) -> Collection[Key]:
        """Add the staged rows in one transaction, unless there are keys that must be removed first, which are returned."""
        with connection.transaction():
            target = self._held(connection, table, start)
            copied = self._copied(connection, target)
            if start.replace:
                self._begin_load(connection, table, target, start)
            if copied is not None:
                copied.stage(self._true_versions(target, start, copied.oldest_here()))
                copied.leave_out_deleted(STAGE, start.seen)
                if not start.replace and (lost := copied.losers(STAGE, table.columns)):
                    return lost
            if not start.replace:
                self._begin_load(connection, table, target, start)
            if copied is not None:
                copied.settle(STAGE, table.columns)
            columns = ", ".join(map(quote, table.columns))
            always = any(c.always_identity for c in target.columns.values()) and version(connection) >= IDENTITY
            overriding = " OVERRIDING SYSTEM VALUE" if always else ""
            once = " ON CONFLICT DO NOTHING" if version(connection) >= UPSERT else _unless_there(target)
            insert = f"INSERT INTO {quoted(table.table)} ({columns}){overriding} SELECT {columns} FROM {STAGE} AS s{once}"
            connection.execute(insert.encode())
            self._end_load(connection, table, start, copied, sent)
        return ()

    def _is_untouched(self, connection: Connection, target: TargetTable, start: Start) -> bool:
        """Whether the table has no rows that stay, nor has had any that were deleted."""
        if not start.replace and not _is_empty(connection, target):
            return False
        if self._skew is None:
            return True
        query = "SELECT 1 FROM streamer.tombstone WHERE schema_name = %s AND table_name = %s LIMIT 1"
        return connection.execute(query, _parts(target.table)).fetchone() is None


def _drop_stage(connection: Connection) -> None:
    """Drop it, if it is there. After a DROP of its own psycopg would deallocate all that is prepared."""
    connection.ask(f"DROP TABLE IF EXISTS {STAGE}")


def _parts(table: TableName) -> tuple[str, str]:
    return table.schema, table.name


def _unless_there(target: TargetTable) -> str:
    """The condition for rows none of whose unique values is in the table, where the server knows no ON CONFLICT."""
    same = [" AND ".join(f"t.{quote(c)} = s.{quote(c)}" for c in unique) for unique in target.uniques]
    return "".join(
        f" {'AND' if i else 'WHERE'} NOT EXISTS (SELECT 1 FROM {target.rows} AS t WHERE {one})" for i, one in enumerate(same)
    )


def _is_empty(connection: Connection, target: TargetTable) -> bool:
    return connection.execute(f"SELECT 1 FROM {target.rows} LIMIT 1").fetchone() is None


def _empty(connection: Connection, target: TargetTable, *, gently: bool) -> None:
    """Remove the rows; by DELETE where readers are not to wait, or a foreign key forbids TRUNCATE (it does not fire in a replica
    session)."""
    if _is_empty(connection, target):
        return
    if gently:
        connection.execute(f"DELETE FROM {target.rows}")
        return
    try:
        with connection.transaction():
            connection.execute(f"TRUNCATE {target.rows}")
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege):
        connection.execute(f"DELETE FROM {target.rows}")
