"""The capture by triggers: a stream's reading end on the deltas that triggers write, for servers without logical decoding.

`TriggerSource` answers what the stream asks between sessions; trigger_reader.py is an open session. Positions are numbers of
batches in the upper half of an LSN. The trap: nothing keeps two daemons from reading the deltas, as a slot would; so a session has
a lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import psycopg

from streamer.capture import batches, keys, trigger_query
from streamer.capture.assemble import Interest
from streamer.capture.batches import Batches, Standing, position_of
from streamer.capture.catalog import read_tables
from streamer.capture.first_rows import awaited
from streamer.capture.key_ranges import copied_table
from streamer.capture.nonblocking import Statements
from streamer.capture.snapshot import ExportedSnapshot
from streamer.capture.trigger_reader import TriggerReader
from streamer.capture.trigger_snapshot import trigger_snapshot
from streamer.capture.trigger_tables import TriggerTables
from streamer.capture.trigger_transactions import TransactionReader
from streamer.capture.triggers import CHANNEL
from streamer.errors import SlotError, SourceError, TakenError, start_over
from streamer.model import SlotIdentity, TableName
from streamer.ports import CopyTable, Place, SlotState
from streamer.session import Connection, connect, reported, version
from streamer.versions import keeps_commit_times

HANDOVER_SECONDS: Final = 3.0
"""How long to wait for the lock of a daemon that has just ended, before somebody else is taken to read."""

_PREPARES: Final = "SELECT current_setting('max_prepared_transactions') <> '0'"


class TriggerSource:
    """Implements ports.Source for one sync on one node."""

    def __init__(self, name: str, url: str, sync: str, stream: str, interest: Interest) -> None:
        self._node = name
        self._url = url
        self._sync = sync
        self._stream = stream
        self._interest = interest
        self._application = f"streamer {sync} {name}"
        #: the tables that the stream has told of since the daemon started, and their oids
        self._carried: dict[TableName, int] = {}

    def state(self) -> SlotState:
        """Return where the stream stands; `current` is past what is committed now."""
        with self._connection() as connection:
            return self._state(connection)

    def _state(self, connection: Connection) -> SlotState:
        if version(connection) >= 90000 and connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            raise SourceError(f'node "{self._node}" is a standby', f"name its primary in nodes.{self._node}.url")
        recorded = self._batches(connection)
        standing = recorded.standing() if recorded is not None else None
        if recorded is None or standing is None:
            raise SlotError(
                f'there is no stream "{self._stream}" on "{self._node}"',
                f"changes since its last batch are lost; {start_over(self._sync, self._node)}",
            )
        (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
        number = standing.number + self._is_behind(connection, recorded, standing)
        identity = SlotIdentity(standing.id, database, self._stream)
        return SlotState(identity, position_of(standing.confirmed), position_of(number), batches=True)

    def _is_behind(self, connection: Connection, recorded: Batches, standing: Standing) -> bool:
        """Whether there are deltas for us that no batch holds yet."""
        snapshot = recorded.snapshot(standing.number)
        if snapshot is None:
            return True
        tables = TriggerTables(connection, self._node, self._sync, self._interest)
        found = connection.execute(trigger_query.relations(snapshot).encode()).fetchall()
        return any(tables.matters(relation) for relation, *_ in found)

    def _batches(self, connection: Connection) -> Batches | None:
        return Batches(connection, self._node, self._stream) if batches.installed(connection) else None

    def tables(self) -> list[CopyTable]:
        """Return the tables that the sync selects, and whether the stream carries them."""
        with self._connection() as connection:
            tables = read_tables(connection, self._interest.selects)
            wanted, whole = keys.divided(tables, self._interest)
            keys.require(self._node, [t for t in tables if t.table not in whole], self._interest.keys)
            carried = TriggerTables(connection, self._node, self._sync, self._interest).names
            awaiting = awaited(connection, self._sync, self._node, self._interest)
        made = (copied_table(t, carried=t.table in carried, whole=t.table in whole, key=wanted.get(t.table, ())) for t in tables)
        return [replace(table, by_triggers=True, awaits_rows=table.table in awaiting) for table in made]

    @contextmanager
    def read_from(self, places: Sequence[Place]) -> Iterator[TriggerReader]:
        """Open the stream for edges at these places; on leaving, what was confirmed is noted once more."""
        with self._connection() as recording, self._connection() as reading:
            self._take(recording)
            reading.execute(f"LISTEN {CHANNEL}".encode())
            reading.execute("SET synchronous_commit = off")  # it writes nothing but that it sleeps
            tables = TriggerTables(recording, self._node, self._sync, self._interest, self._carried)
            recorded = Batches(recording, self._node, self._stream)
            statements = Statements(reading)
            transactions = TransactionReader(self._node, statements, self._interest, tables, keeps_commit_times(recording))
            deaf = recording.execute(_PREPARES).fetchone() == (True,)
            reader = TriggerReader(self._node, self._sync, statements, recorded, tables, places, transactions, deaf=deaf)
            try:
                yield reader
            finally:
                _break_off(reading)
                reader.finish()

    def _take(self, connection: Connection) -> None:
        """Take the lock of whoever reads this stream. Raises TakenError."""
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not batches.try_lock(connection, self._stream):
            if time.monotonic() > deadline:
                raise TakenError(
                    f'stream "{self._stream}" on "{self._node}" is read by another daemon', "streamer takes over when that ends"
                )
            time.sleep(0.1)

    @contextmanager
    def snapshot(self) -> Iterator[ExportedSnapshot]:
        """Hold a consistent state of the tables: that of a batch which is recorded for it."""
        with self._connection() as recording, self._connection() as reading:
            recorded = Batches(recording, self._node, self._stream)
            with trigger_snapshot(self._node, self._url, recorded, reading) as snapshot:
                yield snapshot

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with reported(self._node), connect(self._node, self._url, application=self._application) as connection:
            yield connection


def _break_off(connection: Connection) -> None:
    """Have the server stop what it still does for a reader that has left."""
    with suppress(psycopg.Error):
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            connection.cancel_safe(timeout=1)
    connection.close()
