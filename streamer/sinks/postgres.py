"""The PostgreSQL sink: what an edge asks of it, handed to the parts that do it.

`postgres_session` is the connection and all that a transaction needs around its rows; `postgres_copy` loads tables before streaming
begins; changes are written in groups (`postgres_groups`), or, where several nodes write the same tables, transaction by transaction
with their conflicts resolved (`postgres_transactions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from streamer.model import LSN, EdgeName, Group, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, Start, Written
from streamer.sinks.postgres_copy import TableLoader
from streamer.sinks.postgres_groups import GroupWriter
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_transactions import MultiMaster, TransactionWriter


class PostgresSink:
    """Implements ports.Sink for a PostgreSQL database. With `masters`, several nodes write its tables."""

    def __init__(self, edge: EdgeName, url: str, masters: MultiMaster | None = None) -> None:
        self._session = TargetSession(edge, url)
        self._masters = masters
        self._writer: GroupWriter | TransactionWriter  # from open() on
        self._loader: TableLoader

    @property
    def merges(self) -> bool:
        """Whether several transactions may share a target transaction."""
        return self._masters is None

    def open(self) -> Progress | None:
        """Connect, take the edge's lock, and return what the target holds of it."""
        session = self._session
        progress = session.open()
        masters = self._masters
        self._loader = (
            TableLoader(session) if masters is None else TableLoader(session, masters.max_clock_skew, masters.tombstone_days)
        )
        self._writer = GroupWriter(session) if self._masters is None else TransactionWriter(session, self._masters)
        return progress

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        self._loader.begin(slot, position)
        self._session.begun(position)

    def has(self, table: TableName) -> bool:
        """Return whether the target has this table."""
        return self._loader.has(table)

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows."""
        return self._loader.is_empty(table)

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        self._loader.keep(table, position)

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, in one transaction."""
        return self._loader.load(table, start, blocks)

    @property
    def parallel_loads(self) -> bool:
        """Whether a load has a connection of its own."""
        return self._masters is None

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

    def cancel(self) -> None:
        """Have the server break off what our sessions are doing."""
        self._session.cancel()

    def close(self) -> None:
        """Disconnect, undoing an open transaction."""
        self._session.close()
