"""What a stream needs of its two ends. Each method says what returning means; that is the whole contract.

`capture` implements Source, `sinks` implement Sink; neither knows the other, and `stream.py` and `edge.py` know only these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol, TypeAlias

from streamer.errors import StreamerError
from streamer.model import (
    LSN,
    NOTHING_SEEN,
    POSTGRES_EPOCH,
    Column,
    CopiedRange,
    Group,
    Idle,
    KeyRange,
    Piece,
    Seen,
    Sharing,
    SlotIdentity,
    TableName,
    Version,
)
from streamer.post_data import Builder

IDLE_BYTES: Final = 1 << 20
"""WAL without anything for an edge that may pass before it notes its position for its own sake: that is a write on the target."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """Where a stream's slot stands on its source."""

    identity: SlotIdentity
    #: everything committed before it has been confirmed, and can not be read again
    confirmed: LSN
    #: the end of the source's WAL, flushed
    current: LSN
    #: whether the server tells what was confirmed; if not, `confirmed` lies somewhere before it
    exact: bool = True
    #: whether the positions are numbers of batches, not of WAL
    batches: bool = False
    idle_bytes: int = IDLE_BYTES
    #: where the source has left the timelines before its own, as far as it knows
    switches: Mapping[int, LSN] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an edge goes on."""

    position: LSN
    #: what the source is known to have applied of others by then
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)
    #: from where on it wants changes of a table: those before are in the table's copy. Its ranges may differ in that
    starts: Mapping[TableName, Collection[LSN]] = field(default_factory=dict)


class Reader(Protocol):
    """An open stream of changes."""

    @property
    def obstacle(self) -> StreamerError | None:
        """Why nothing comes though the session goes on, if the source tells that; None while something comes."""

    def read(self, timeout: float) -> Sequence[Piece | Idle]:
        """Return what has come, in order, waiting up to `timeout` seconds for something; possibly nothing.

        The server is kept satisfied that we live, also when there is nothing to read. Raises SourceError, ConnectError.
        """

    def confirm(self, position: LSN) -> None:
        """Tell the source that it may forget what was committed before `position`. Returning means sent, not received.

        Cheap when nothing is due; call it often, also while waiting for a target. Raises ConnectError.
        """


class Snapshot(Protocol):
    """A consistent state of the source's tables: all that was committed before `position`, and nothing else."""

    @property
    def position(self) -> LSN:
        """Where changes that the snapshot does not hold begin."""

    @property
    def time(self) -> datetime:
        """By the source's clock: whatever the snapshot does not hold was committed there later."""

    def held(self, sync: str) -> Mapping[str, Held]:
        """Return what the snapshot holds of the sync's other sources, for each whose edge to this one has begun."""

    def is_empty(self, table: TableName) -> bool:
        """Return whether the table has no rows."""

    def has_deleted(self, table: TableName) -> bool:
        """Return whether it is known that the table had rows which were deleted."""

    def versions(self, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
        """Give the versions of rows and deleted keys, told by the values of the columns `key`, that are newer than `since`."""

    def rows(
        self, table: TableName, columns: Sequence[str], where: str = "", within: KeyRange | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Give the table's rows, or those that fulfil a condition or are within a range, in blocks of COPY's text format, each
        block whole rows. May be called from several threads.

        https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2
        """

    def first_range(self, table: CopyTable, within: KeyRange, rows: int) -> KeyRange:
        """Return where the first so many rows are that the table has within a range: that range itself if it has fewer."""


class Source(Protocol):
    """One stream's reading end."""

    def state(self) -> SlotState:
        """Return where the slot stands. Raises SlotError if it is missing, ConnectError."""

    def tables(self) -> Sequence[CopyTable]:
        """Return the tables that the sync selects. Raises ConnectError."""

    def read_from(self, places: Sequence[Place]) -> AbstractContextManager[Reader]:
        """Open the stream for edges that go on at these places, in order, one at least: transactions committed before the first may
        be left out. Raises SourceError, ConnectError.
        """

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Hold a consistent state of the tables while the context lasts. Raises SourceError, ConnectError."""


@dataclass(frozen=True, slots=True)
class CopyTable:
    """A table of the source and the columns of it that travel (generated ones don't)."""

    table: TableName
    columns: tuple[str, ...]
    #: the types of `columns`: what a sink of another engine converts by
    type_oids: tuple[int, ...]
    #: estimated number of rows, for progress bars; 0 if unknown
    rows: int
    #: whether the stream carries its changes: a table made after `setup` is selected, but not yet carried
    carried: bool = True
    #: whether triggers capture its changes
    by_triggers: bool = False
    #: whether its first rows are still to come from another source: until then no change of this one is told
    awaits_rows: bool = False
    #: the columns of the replica identity; none if it is FULL, or there is none
    key: tuple[str, ...] = ()
    #: a condition in SQL that the rows to copy fulfil; empty: all
    where: str = ""
    #: whether no changes of it are read: it is copied whole, again and again
    whole: bool = False
    #: all of its rows as the range that others are cut from; None if it cannot be cut
    ranged: KeyRange | None = None
    #: estimated, in bytes, without indexes; 0 if unknown
    size: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """Which of these rows fulfil a condition? A row has the values of `columns`, of which there is none that is UNCHANGED."""

    table: TableName
    where: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[str | None, ...]]


class RowFilter(Protocol):
    """Has the source's server judge rows, so that a condition means the same for a change as in a query there."""

    def answer(self, questions: Sequence[Question]) -> Sequence[Sequence[bool]]:
        """Return for each question whether its rows fulfil the condition; a condition that is NULL is not fulfilled.

        Raises SourceError if a condition fails, ConnectError.
        """

    def cancel(self) -> None:
        """Make what another thread asks fail soon. Never raises."""

    def close(self) -> None:
        """Disconnect; the next question connects again. Never raises."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a target holds of one edge, read from the target itself."""

    slot: SlotIdentity
    position: LSN
    #: tables whose initial copy is whole, with the position of its snapshot: their earlier changes are in it
    copied: dict[TableName, LSN]
    #: what the source had applied of others by `position`, as far as is known
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)
    #: of tables whose copy is not finished, what is; of others, where the changes of each range begin if that is not the same
    ranges: dict[TableName, tuple[CopiedRange, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """What a source's snapshot holds of another source."""

    progress: Progress
    #: of the newest transaction made there; POSTGRES_EPOCH if unknown
    time: datetime


@dataclass(frozen=True, slots=True)
class RowVersion:
    """When and where a row was written, or its key deleted; with an empty key, all rows of the table."""

    key: tuple[str, ...]
    version: Version
    deleted: bool


Versions: TypeAlias = Callable[[Sequence[str], datetime, datetime | None], Iterator[RowVersion]]
"""Called with key columns, `floor` and `here`: gives the versions that may matter to changes still to come, and those that are
newer than `here`, if that is given; in both cases only what is newer than `floor`."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the rows of a copy come from, and where edges go on after them."""

    #: where changes that the rows do not hold begin
    position: LSN
    #: the snapshot's
    time: datetime = POSTGRES_EPOCH
    #: whether rows that are there go; else they stay, and win over copied ones with the same key
    replace: bool = True
    #: whether they go in such a way that readers see either the old rows or the new ones, and need not wait
    gently: bool = False
    #: the same positions for other sources of the sync, whose changes the rows hold too
    others: Mapping[str, LSN] = field(default_factory=dict)
    #: up to when the rows know what was done at the target itself
    seen: datetime = POSTGRES_EPOCH
    #: the rows' true versions
    versions: Versions | None = None
    #: which rows of the table they are; None: all
    within: KeyRange | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a group did to the target."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    #: updates and deletes whose row was not there
    missing: int = 0
    #: resolved, by kind
    conflicts: Mapping[str, int] = field(default_factory=dict)
    #: how far the commit time lay ahead of the target's clock when it came, in seconds
    skew: float = 0.0
    #: seconds spent waiting until the target's clock had passed commit times
    waited: float = 0.0
    #: values written as NULL or as the nearest one, because the column cannot hold them; those of copied rows come with
    #: the next group
    replaced: int = 0
    #: changes that the target has not got, but holds in quarantine
    quarantined: int = 0
    #: changes taken out of quarantine, because their table was truncated
    voided: int = 0
    #: the first that was refused, and why, for people; empty if all follow earlier ones
    refusal: str = ""


class RangeLoader(Protocol):
    """Records tables that are copied in ranges; called by all threads that load."""

    def takes(self, table: CopyTable) -> bool:
        """Return whether the target's table has an index that finds ranges, so that it can be copied so."""

    def resumes(self, table: CopyTable) -> bool:
        """Return whether ranges of it may be of different snapshots: nothing but the key is unique, or the edge stops at what
        contradicts that. If so, see to it that the room of what a broken copy has left in the table is used again.
        """

    def begin(self, table: CopyTable, start: Start) -> bool:
        """Empty the table if `start` says so, and record that its copy has begun: at position 0/0, without ranges. Return False,
        and do nothing, if it has rows that are to stay.
        """

    def finish(self, table: CopyTable, position: LSN, rows: int) -> None:
        """Record that all ranges are copied, the last at this position; where that differs, it stays known."""

    def forget(self, table: TableName) -> None:
        """Forget the ranges: the stream has passed them, or the table is copied anew."""

    def rest(self) -> None:
        """All tables are loaded, or none for now: give back what loads have had one after the other."""


class Sink(Protocol):
    """The writer of one edge: one connection, used by one thread at a time."""

    def open(self) -> Progress | None:
        """Connect, make sure that no other daemon writes this edge, and return what the target holds of it, None if nothing.

        Raises ConnectError, TargetError.
        """

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Record that this edge follows `slot` from `position` on. Returning means durable."""

    def follow(self, slot: SlotIdentity) -> None:
        """Record that the edge follows the slot on another timeline from now on. Returning means durable."""

    def has(self, table: TableName) -> bool:
        """Return whether the target has this table."""

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows, or none that a copy must leave alone. Raises SchemaError if there is no
        such table."""

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows in `blocks` (COPY's text format), record the copy as whole, and where `start` says that other edges of the
        sync go on for this table; return the row count. Where `start` names a range, that is recorded, and is replaced.

        One target transaction: either all of it is durable, or nothing, and nothing if the target took another number of rows than
        were sent. Several threads may load at once where `parallel_loads` says so.
        """

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy: its rows are as of `position` already. Returning means durable."""

    def leave(self, table: TableName) -> None:
        """Forget what is recorded of the table for this edge; its rows stay. Returning means durable."""

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return what the target holds of all edges of the sync that end here."""

    def try_lock(self, name: str) -> bool:
        """Take the lock of this name, of which there is one for all edges of the sync that end here; False if another sink has it.

        It is kept until `unlock` or the end of the connection.
        """

    def unlock(self, name: str) -> None:
        """Give back the lock, if we have it."""

    @property
    def parallel_loads(self) -> bool:
        """Whether several loads may run at once."""

    @property
    def ranges(self) -> RangeLoader | None:
        """What tables are copied in ranges by; None if the target takes whole tables only."""

    @property
    def post_data(self) -> Builder | None:
        """What makes indexes and constraints when rows are there; None if the target has none."""

    @property
    def sharing(self) -> Sharing:
        """Which transactions may share a group, and so a target transaction."""

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group, in order, with its progress in one target transaction, and return what each did; returning means
        committed. The last one's transaction stays open for more if that group is not `complete`. No further ones are
        written once `interrupted` says so. After an error some may be committed, the rest is not in the target, and
        the sink must be closed. Raises ApplyError, SchemaError, ConnectError.
        """

    def durable(self) -> LSN:
        """Return the position up to which everything written survives a crash of the target."""

    def quarantined(self) -> int:
        """Return how many changes of the edge the target holds in quarantine, as of a moment ago; cheap while there are none."""

    def cancel(self) -> None:
        """Make what another thread has under way here fail soon, also where it waits for a lock. Never raises."""

    def close(self) -> None:
        """Disconnect, undoing an open transaction. Never raises."""
