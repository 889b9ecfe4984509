"""A source in memory: a list of transactions that a stream can be read from, again and from anywhere, like a slot."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from streamer.copytext import format_rows
from streamer.model import LSN, Change, Idle, KeyRange, Origin, Piece, Seen, SlotIdentity, TableName, Transaction
from streamer.ports import IDLE_BYTES, CopyTable, Held, Place, RowVersion, SlotState

SLOT = SlotIdentity("7000", "shop", "streamer_shop_a")
START = LSN(1000)


class MemorySource:
    """Implements ports.Source. Commits are 10 bytes of WAL apart."""

    def __init__(self, tables: Sequence[CopyTable] = ()) -> None:
        self.slot = SLOT
        self.confirmed = START
        self.end = START
        #: where each session began
        self.sessions: list[LSN] = []
        #: what we have applied of other nodes
        self.seen: Seen = {}
        #: what each session was told of what we had applied
        self.known: list[list[tuple[LSN, Seen]]] = []
        self.rows_of: dict[TableName, list[tuple[str, ...]]] = {}
        #: what it has applied of other sources
        self.holds: dict[str, Held] = {}
        #: whether idle positions are told without urgency; each is told once in any case
        self.quiet = False
        #: how much may pass before one of those is noted
        self.idle_bytes = IDLE_BYTES
        #: the idle position that was told last
        self.told = START
        #: the next reads raise these
        self.faults: list[Exception] = []
        self._tables = tables
        self._log: list[Piece] = []
        self._changed = threading.Condition()

    def commit(
        self, *changes: Change, pieces: int = 1, origin: str = "a", via: str = "a", seen: Mapping[str, datetime] | None = None
    ) -> LSN:
        """Append a transaction in so many pieces; return the position just past it."""
        with self._changed:
            position, self.end = LSN(self.end + 5), LSN(self.end + 10)
            transaction = Transaction(position, Origin(origin, position, datetime.now(UTC)), via)
            self.seen = seen or self.seen
            for n in range(pieces):
                last = n == pieces - 1
                self._log.append(Piece(transaction, list(changes[n::pieces]), 100, self.end if last else None, self.seen))
            self._changed.notify_all()
            return self.end

    def state(self) -> SlotState:
        return SlotState(self.slot, self.confirmed, self.end, idle_bytes=self.idle_bytes)

    def tables(self) -> Sequence[CopyTable]:
        return self._tables

    @contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        yield MemorySnapshot(self.end, self.rows_of, self.holds)

    @contextmanager
    def read_from(self, places: Sequence[Place]) -> Iterator[MemoryReader]:
        position = places[0].position
        self.sessions.append(position)
        self.known.append([(place.position, place.seen) for place in places])
        yield MemoryReader(self, max(position, self.confirmed))

    def wait_for(self, index: int, timeout: float) -> list[Piece]:
        """What is in the log from `index` on."""
        with self._changed:
            if index >= len(self._log):
                self._changed.wait(timeout)
            return self._log[index:]


class MemoryReader:
    """Implements ports.Reader: two pieces a time, then the idle position."""

    obstacle = None

    def __init__(self, source: MemorySource, position: LSN) -> None:
        self._source = source
        self._position = position
        self._index = 0
        self._told = False

    def read(self, timeout: float) -> list[Piece | Idle]:
        if self._source.faults:
            raise self._source.faults.pop(0)
        pieces = self._source.wait_for(self._index, timeout)[:2]
        self._index += len(pieces)
        end = self._source.end
        if not pieces and (not self._told or (self._source.quiet and end > self._source.told)):
            self._told, self._source.told = True, end
            return [Idle(end, urgent=not self._source.quiet, seen=self._source.seen)]
        self._told = self._told and not pieces
        return [p for p in pieces if p.transaction.position >= self._position]

    def confirm(self, position: LSN) -> None:
        self._source.confirmed = max(self._source.confirmed, position)


class MemorySnapshot:
    """Implements ports.Snapshot."""

    def __init__(
        self, position: LSN, rows_of: Mapping[TableName, list[tuple[str, ...]]], holds: Mapping[str, Held] | None = None
    ) -> None:
        self.position = position
        self.time = datetime.now(UTC)
        self._rows_of = rows_of
        self._holds = holds or {}

    def held(self, sync: str) -> Mapping[str, Held]:
        return self._holds

    def is_empty(self, table: TableName) -> bool:
        return not self._rows_of.get(table)

    def has_deleted(self, table: TableName) -> bool:
        return False

    def versions(self, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
        return iter(())

    @contextmanager
    def rows(
        self, table: TableName, columns: Sequence[str], where: str = "", within: KeyRange | None = None
    ) -> Iterator[Iterator[bytes]]:
        rows = self._rows_of.get(table, [])
        if within is not None:
            key = columns.index(within.column)
            rows = [row for row in rows if is_within(within, row[key])]
        yield iter([format_rows(rows)] if rows else [])

    def first_range(self, table: CopyTable, within: KeyRange, rows: int) -> KeyRange:
        key = table.columns.index(within.column)
        found = sorted((row[key] for row in self._rows_of.get(table.table, []) if is_within(within, row[key])), key=within.order)
        return replace(within, high=found[rows - 1]) if len(found) >= rows else within


def is_within(of: KeyRange, value: str) -> bool:
    """Whether a row with this key is in the range."""
    at = int(value)
    return (of.low is None or at > int(of.low)) and (of.high is None or at <= int(of.high))
