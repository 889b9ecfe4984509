"""The PostgreSQL sink: what an edge asks of it, handed to the parts that do it.

`postgres_session` is the connection and all that a transaction needs around its rows; `postgres_copy` loads tables before streaming
begins; changes are written in groups (`postgres_groups`), or, where several nodes write the same tables, transaction by transaction
with their conflicts resolved (`postgres_transactions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import psycopg

from streamer.errors import SchemaError, TargetError
from streamer.model import LSN, EdgeName, Group, Sharing, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, RangeLoader, Start, Written
from streamer.post_data import Builder
from streamer.sinks.postgres_care import quarantine_table
from streamer.sinks.postgres_copy import TableLoader
from streamer.sinks.postgres_groups import GroupWriter
from streamer.sinks.postgres_post_data import PostgresPostData
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_transactions import MultiMaster, TransactionWriter
from streamer.sinks.quarantine import OnError, Quarantine, stops


class PostgresSink:
    """Implements ports.Sink for a PostgreSQL database. With `masters`, several nodes write its tables."""

    def __init__(self, edge: EdgeName, url: str, masters: MultiMaster | None = None, on_error: OnError = stops) -> None:
        self._edge = edge
        self._session = TargetSession(edge, url)
        self._masters = masters
        self._on_error = on_error
        self._quarantine: Quarantine  # from open() on, as are the next
        self._writer: GroupWriter | TransactionWriter
        self._loader: TableLoader

    @property
    def sharing(self) -> Sharing:
        """Which transactions may share a target transaction: what it is tagged with is one origin."""
        return Sharing.ONE_ORIGIN if self._masters is None else Sharing.NONE

    def open(self) -> Progress | None:
        """Connect, take the edge's lock, and return what the target holds of it."""
        session = self._session
        progress = session.open()
        masters = self._masters
        self._loader = (
            TableLoader(session, on_error=self._on_error)
            if masters is None
            else TableLoader(session, masters.max_clock_skew, masters.tombstone_days, rules=masters.rules)
        )
        self._quarantine = self._read_quarantine()
        self._writer = GroupWriter(session, self._quarantine) if masters is None else TransactionWriter(session, masters)
        return progress

    def _read_quarantine(self) -> Quarantine:
        session = self._session
        with session.errors():
            try:
                quarantine = Quarantine(self._edge, quarantine_table(self._edge, session.connection), self._on_error)
            except psycopg.errors.UndefinedTable:
                raise SchemaError(f'schema streamer on "{session.node}" is of an older version', "run: streamer setup") from None
        if self._masters is not None and quarantine.holding:
            raise TargetError(
                f'edge {self._edge}: "{session.node}" holds changes in quarantine from when the sync had one source',
                f"streamer quarantine retry --sync {self._edge.sync}, or: streamer quarantine discard --sync {self._edge.sync}",
            )
        return quarantine

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        self._loader.begin(slot, position)
        self._session.begun(position)

    def follow(self, slot: SlotIdentity) -> None:
        """Update the edge's progress row."""
        self._loader.follow(slot)

    def has(self, table: TableName) -> bool:
        """Return whether the target has this table."""
        return self._loader.has(table)

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows, or none that a copy must leave alone."""
        return self._loader.is_empty(table)

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        self._loader.keep(table, position)

    def leave(self, table: TableName) -> None:
        """Forget the table."""
        self._loader.leave(table)

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, in one transaction."""
        return self._loader.load(table, start, blocks)

    @property
    def parallel_loads(self) -> bool:
        """Whether a load has a connection of its own."""
        return self._masters is None

    @property
    def ranges(self) -> RangeLoader | None:
        """What records tables that are copied in ranges; where several nodes write, a copy is one transaction."""
        return self._loader.ranges if self._masters is None else None

    @property
    def post_data(self) -> Builder | None:
        """What makes indexes and constraints when rows are there."""
        return PostgresPostData(self._session)

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return what the target holds of all edges of the sync that end here."""
        return self._loader.progress_by_source()

    def try_lock(self, name: str) -> bool:
        """Take an advisory lock of the sync on this target."""
        return self._loader.try_lock(name)

    def unlock(self, name: str) -> None:
        """Give it back."""
        self._loader.unlock(name)

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group, or transaction, and its progress in one target transaction."""
        return self._writer.write(groups, interrupted)

    def durable(self) -> LSN:
        """Return the position up to which everything written survives a crash of the target."""
        return self._session.durable()

    def quarantined(self) -> int:
        """Return how many changes the database holds in quarantine."""
        with self._session.errors():
            return self._quarantine.held()

    def cancel(self) -> None:
        """Have the server break off what our sessions are doing."""
        self._session.cancel()

    def close(self) -> None:
        """Disconnect, undoing an open transaction."""
        self._session.close()
