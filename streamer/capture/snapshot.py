"""A consistent state of the source's tables, and the exact position where the changes after it begin.

A temporary slot exports its snapshot: the snapshot holds precisely what was committed before the slot's consistent point. The
stream's own slot is not needed for it, so that tables can be copied at any time, again, or for one more target, while it goes on.
The session that made the temporary slot must stay open and untouched for as long as anybody imports the snapshot.

https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from streamer.capture import key_ranges
from streamer.capture.copy_out import BLOCK, CopyOut
from streamer.capture.nonblocking import Statements
from streamer.capture.row_filter import condition_errors
from streamer.capture.row_versions import row_versions
from streamer.errors import StreamerError
from streamer.model import LSN, POSTGRES_EPOCH, KeyRange, SlotIdentity, TableName
from streamer.node_config import LOGICAL_DECODING
from streamer.ports import CopyTable, Held, Progress, RowVersion
from streamer.session import QUALIFIED, Connection, connect, reported, version
from streamer.spare_connections import SpareConnections
from streamer.versions import SOURCE_SEEN, read_seen

TEMPORARY_SLOTS: Final = 100000  # version 10
_SLOT: Final = "streamer_copy_"
COPY_SLOT: Final = f"^{_SLOT}([0-9]+)"
"""The names of slots: the number of the session's process follows."""
_APPLICATION: Final = "streamer snapshot"

_PROGRESS: Final = (
    "SELECT source, system_identifier, database, slot, position, CASE WHEN origin = source THEN origin_time END, "
    f"{SOURCE_SEEN} FROM streamer.progress WHERE sync = %s AND target = %s"
)
_COPIED: Final = "SELECT source, schema_name, table_name, position FROM streamer.copy WHERE sync = %s AND target = %s"


class ExportedSnapshot:
    """Implements ports.Snapshot with connections of its own, one for each thread that reads."""

    def __init__(self, node: str, url: str, name: str, position: LSN, time: datetime) -> None:
        self._node = node
        self._connections = SpareConnections(lambda: connect(node, url, application="streamer copy"))
        #: of the columns that tables are cut by
        self._statistics: dict[TableName, key_ranges.Statistics] = {}
        #: by which other sessions import it; empty if they cannot
        self.name = name
        self.position = position
        self.time = time

    @contextmanager
    def rows(
        self, table: TableName, columns: Sequence[str], where: str = "", within: KeyRange | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Give the table's rows as of the snapshot, in blocks of COPY text."""
        terms = [f"(\n{where}\n)"] if where else []
        with self._imported() as connection:
            if not where:  # in which the user may name what is found by the path
                self._qualify(connection)
            terms += [] if within is None else key_ranges.condition(within)
            only = sql.SQL(f" WHERE {' AND '.join(terms)}" if terms else "")
            chosen, place = self._values(connection, table, columns), key_ranges.place(connection, table)
            query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(chosen, sql.SQL(place), only)
            yield self._blocks(connection, query.as_string(connection), table, where)

    def _values(self, connection: Connection, table: TableName, columns: Sequence[str]) -> sql.Composable:
        """What gives the columns' values in COPY's text format."""
        return sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("")

    def first_range(self, table: CopyTable, within: KeyRange, rows: int) -> KeyRange:
        """Return where the first so many rows are, by an index of the table; all of them if an index would read them scattered."""
        known = self._statistics_of(table.table, within.column)
        if within.whole and known.is_scattered:
            return within
        if (end := known.end_of_first(within, rows)) is None:
            with self._imported() as connection:
                found = connection.execute(key_ranges.end_of_first(table.table, within, rows)).fetchone()
            end = within.high if found is None else found[0]
        return replace(within, high=end)

    def _statistics_of(self, table: TableName, column: str) -> key_ranges.Statistics:
        if table not in self._statistics:
            with self._imported() as connection:
                self._statistics[table] = key_ranges.statistics(connection, table, column)
        return self._statistics[table]

    def is_empty(self, table: TableName) -> bool:
        """Return whether the table has no rows."""
        with self._imported() as connection:
            query = f"SELECT 1 FROM {key_ranges.place(connection, table)} LIMIT 1"
            return connection.execute(query.encode()).fetchone() is None

    def has_deleted(self, table: TableName) -> bool:
        """Return whether there are tombstones of the table."""
        query = "SELECT 1 FROM streamer.tombstone WHERE schema_name = %s AND table_name = %s LIMIT 1"
        with self._imported() as connection:
            return connection.execute(query, [table.schema, table.name]).fetchone() is not None

    def held(self, sync: str) -> Mapping[str, Held]:
        """Return what the snapshot holds of the sync's other sources, as their edges have noted it in this database."""
        with self._imported() as connection:
            rows = connection.execute(_PROGRESS, [sync, self._node]).fetchall()
            copied = connection.execute(_COPIED, [sync, self._node]).fetchall()
        return {
            source: Held(
                Progress(
                    SlotIdentity(system, database, slot),
                    LSN.parse(position),
                    {TableName(schema, table): LSN.parse(at) for of, schema, table, at in copied if of == source},
                    read_seen(seen),
                ),
                time or POSTGRES_EPOCH,
            )
            for source, system, database, slot, position, time, seen in rows
        }

    def versions(self, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
        """Give the versions of the table's rows and deleted keys that are newer than `since`."""
        with self._imported() as connection:
            yield from row_versions(connection, self._node, table, key, since)

    @contextmanager
    def _imported(self) -> Iterator[Connection]:
        """A connection that sees the snapshot. Tables are locked only as long as somebody has it."""
        begin = f"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '{self.name}'"
        with reported(self._node), self._connections.lent() as connection:
            connection.execute(begin.encode())
            yield connection
            self._leave(connection)

    def _qualify(self, connection: Connection) -> None:
        """Have names told with their schemas until the transaction ends, as the stream tells them."""
        name, value = QUALIFIED
        connection.execute(f"SET LOCAL {name} = {value}".encode())

    def _leave(self, connection: Connection) -> None:
        """End the transaction of an imported snapshot, unless that is done."""
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the connections."""
        self._connections.close()

    def _blocks(self, connection: Connection, query: str, table: TableName, where: str) -> Iterator[bytes]:
        with condition_errors(self._node, table, where):  # the rows are read inside the target's own error handling
            yield from blocks(connection, query)
        # who has taken them may look at the table over another connection: behind a TRUNCATE, if that waited for our lock
        self._leave(connection)


def blocks(connection: Connection, query: str) -> Iterator[bytes]:
    """Give the rows of a COPY TO STDOUT as blocks of whole rows, from the socket, else straight from libpq: psycopg's own way takes
    twice as long as that for a row.

    A connection that is left in the middle is closed. Raises psycopg.Error.
    """
    statements = Statements(connection)
    try:
        connection.pgconn.send_query(query.encode())
        connection.send_all()
        out = CopyOut(connection)
        yield from out.blocks()
        for block in statements.copied(BLOCK, 0, out.rows):
            if block is None:
                statements.wait()
            else:
                yield block
    except psycopg.Error:
        raise
    except BaseException:
        connection.close()
        raise


@contextmanager
def exported_snapshot(
    node: str, url: str, plugin: Callable[[Connection], str], explain: Callable[[str], StreamerError]
) -> Iterator[ExportedSnapshot]:
    """Hold a snapshot of the database while the context lasts; `plugin` tells which output plugin the node has."""
    # The clock is asked before the slot is made. A transaction takes its commit time while it still runs for others, and the slot
    # waits for all that run when it begins; so whoever took a time before our question is in the snapshot, and what is not in it
    # was committed later. The other way round, a commit could fall between the snapshot and the question and look older than rows
    # that do not hold it. What is in the snapshot may be a little newer than this time: nobody is sent that again.
    time = _now(node, url)
    connection = connect(node, url, application=_APPLICATION, replication=True)
    slot = f"{_SLOT}{connection.waiting.pid}"
    try:
        name, position = _create(connection, slot, plugin(connection), explain)
        with closing(ExportedSnapshot(node, url, name, position, time)) as snapshot:
            yield snapshot
    finally:
        _drop(connection, slot)


def _now(node: str, url: str) -> datetime:
    with reported(node), connect(node, url, application=_APPLICATION) as connection:
        (text,) = connection.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
    return datetime.fromisoformat(text)


def _create(connection: Connection, slot: str, plugin: str, explain: Callable[[str], StreamerError]) -> tuple[str, LSN]:
    temporary = "TEMPORARY " if version(connection) >= TEMPORARY_SLOTS else ""
    export = " EXPORT_SNAPSHOT" if temporary else ""  # before version 10 that was what it always did
    try:
        result = connection.ask(f'CREATE_REPLICATION_SLOT "{slot}" {temporary}LOGICAL "{plugin}"{export}')
    except psycopg.OperationalError as error:
        raise explain(str(error)) from None
    values = [result.get_value(0, i) for i in range(result.nfields)] if result.ntuples else []
    if len(values) < 3 or values[1] is None or values[2] is None:
        raise explain(result.error_message.decode(errors="replace"))
    return values[2].decode(), LSN.parse(values[1].decode())


def _drop(connection: Connection, slot: str) -> None:
    """Give the slot back; a temporary one goes with its session."""
    if version(connection) < TEMPORARY_SLOTS and not connection.broken:
        with suppress(psycopg.OperationalError):  # then it is an abandoned one
            connection.ask(f'DROP_REPLICATION_SLOT "{slot}"')
    connection.close()


def abandoned_slots(connection: Connection) -> list[str]:
    """Return the slots of snapshots in this database whose sessions have ended: one that was killed, or lost its connection. A
    server that has temporary slots has dropped them by itself; an older one would keep WAL for them for ever."""
    if not LOGICAL_DECODING <= version(connection) < TEMPORARY_SLOTS:
        return []
    asked = {"name": COPY_SLOT, "application": _APPLICATION}
    return [slot for (slot,) in connection.execute(_ABANDONED, asked)]


_ABANDONED: Final = """
SELECT s.slot_name FROM pg_catalog.pg_replication_slots s
WHERE s.slot_name ~ %(name)s AND s.database = current_database() AND NOT s.active AND NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_stat_activity a
    WHERE a.pid::text = substring(s.slot_name from %(name)s) AND a.application_name = %(application)s
)
"""
