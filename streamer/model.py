"""The values that travel through streamer: positions, relations, changes, transactions.

Per transaction and per relation there are frozen dataclasses; per row there are plain tuples, because a row has a budget of
a few microseconds. Every column value is PostgreSQL's text output (`str`), `None` for NULL, or `UNCHANGED` for a TOASTed
column that the WAL does not carry.

The trap: a Relation compares by identity, not by value. A capture makes one object per version of a table, so that everyone
downstream can keep plans in a dict without hashing columns for every row.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""What PostgreSQL counts its microseconds from, on the wire and in WAL."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


_LSN_TEXT: Final = re.compile("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class LSN(int):
    """A WAL position in bytes; `str()` is PostgreSQL's form.

    https://www.postgresql.org/docs/current/datatype-pg-lsn.html
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> LSN:
        """Return the position written as `16/B374D848`.

        Raises ValueError for anything else.
        """
        match = _LSN_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"LSN({self})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def from_postgres_time(microseconds: int) -> datetime:
    """Return the moment that lies `microseconds` after 2000-01-01 UTC."""
    return POSTGRES_EPOCH + timedelta(0, 0, microseconds)  # by name it would take twice the time


class Unchanged(enum.Enum):
    """The type of `UNCHANGED`; an enum so that type checkers can narrow on it."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""A column that the change did not touch and the WAL does not carry. Absent is not NULL."""

OnUnrepresentable: TypeAlias = Literal["error", "null", "clamp"]
"""What happens to a value that a target's column cannot hold: the stream stops, or NULL or the nearest value is written."""

OnError: TypeAlias = Literal["stop", "quarantine"]
"""What happens to a change that a target refuses: the edge stops, or the target holds it in quarantine and the rest goes on."""

Value: TypeAlias = str | Literal[Unchanged.UNCHANGED] | None
Row: TypeAlias = tuple[Value, ...]


def newest(row: Row, newer: Row) -> Row:
    """Return `newer` with its unchanged columns taken from `row`."""
    if UNCHANGED not in newer:
        return newer
    return tuple([old if new is UNCHANGED else new for old, new in zip(row, newer, strict=True)])


class Kind(enum.StrEnum):
    """What a change does to its relation."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


class Identity(enum.StrEnum):
    """A relation's replica identity, as `pg_class.relreplident` spells it.

    https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY
    """

    DEFAULT = "d"
    INDEX = "i"
    FULL = "f"
    NOTHING = "n"


@dataclass(frozen=True, slots=True)
class TableName:
    """A schema-qualified table name, unquoted."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Rows of a table whose `column` is greater than `low`, and not greater than `high`; None: without end.

    Only columns of which everybody knows the order have ranges: integers, and with `numeric` False what is ordered as its text is,
    byte by byte.
    """

    column: str
    numeric: bool = True
    low: str | None = None
    high: str | None = None

    @property
    def whole(self) -> bool:
        """Whether all rows are in it."""
        return self.low is None and self.high is None

    def order(self, value: str) -> int | str:
        """Return what compares as the values of the column do."""
        return int(value) if self.numeric else value


@dataclass(frozen=True, slots=True)
class CopiedRange:
    """A range of a table whose rows were copied, and from where on changes of them are applied."""

    range: KeyRange
    position: LSN
    rows: int


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a change, as the capture sees it."""

    name: str
    type_oid: int
    #: part of the replica identity (with FULL every column is, or those of the key that the config names)
    identity: bool


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """One version of a table whose changes travel; rows are aligned with `columns`. Compared by identity (see above)."""

    table: TableName
    columns: tuple[Column, ...]
    identity: Identity
    #: of a row that was written several times only the last state is told, and whole
    net: bool = False
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(c.name for c in self.columns))

    def __str__(self) -> str:
        return f'"{self.table}"'

    @property
    def key(self) -> tuple[int, ...]:
        """The indexes of the columns that tell rows apart by themselves; none if there are none."""
        named = tuple(i for i, c in enumerate(self.columns) if c.identity)
        return () if self.identity is Identity.FULL and len(named) == len(self.columns) else named


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """A column as the source's catalog defines it."""

    name: str
    #: as format_type() writes it, modifiers included
    type_name: str
    type_oid: int
    not_null: bool
    #: the expression of the default, or of the generation
    default: str | None
    #: `pg_attribute.attidentity`: not an identity column, ALWAYS, BY DEFAULT
    identity: Literal["", "a", "d"]
    generated: bool
    #: of a domain, the type that it is a domain over in the end; 0 and empty if it is none
    base_oid: int = 0
    base_name: str = ""
    #: whether the type, or the base of the domain, is an enum
    enum: bool = False


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A table as the source's catalog defines it: what a missing target table is made from."""

    table: TableName
    columns: tuple[ColumnDefinition, ...]
    primary_key: tuple[str, ...]
    #: the columns of every other unique index that holds for all rows at any time (not partial, no expressions, not deferrable)
    unique_keys: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Creation:
    """A statement that makes one object of a PostgreSQL target. A detail belongs to a table that was made just before."""

    kind: Literal["schema", "collation", "extension", "type", "sequence", "table", "detail"]
    name: TableName
    statement: str
    #: the object, for people
    what: str
    #: whether the tables would be of no use without it
    required: bool = True


Change: TypeAlias = tuple[Kind, Relation, Row | None, Row | None]
"""(kind, relation, old, new). `old` is the old row where the WAL has it: for a delete always, for an update when the key
changed or the identity is FULL; its columns that are not in the identity are UNCHANGED. `new` is the row of an insert or
update. A truncate has neither."""


Seen: TypeAlias = Mapping[str, datetime]
"""What a node had applied of others at some time: for each of them the newest commit time."""

NOTHING_SEEN: Final[Seen] = MappingProxyType({})


def all_seen(one: Seen, other: Seen) -> Seen:
    """Return both together."""
    return {node: max(time, one.get(node, time)) for node, time in {**one, **other}.items()}


@dataclass(slots=True)
class Origin:
    """Where a transaction was first made: the node, and the position and time of its commit there.

    `seen` is what that node had applied of others by then; what is not in it was made concurrently. A node's applied transactions
    stand in its WAL, each with its tag, so a reader knows.
    """

    node: str
    position: LSN
    commit_time: datetime
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)

    def knew(self, version: Version) -> bool:
        """Whether the node had seen this version, or made it; what has no time was there before anybody counted."""
        if version.node == self.node or version.time is None:
            return True
        seen = self.seen.get(version.node)
        return seen is not None and version.time <= seen


@dataclass(frozen=True, slots=True)
class Version:
    """When and where a row was written, or a key deleted. A time of None is unknown, and older than all others."""

    time: datetime | None
    node: str

    def precedes(self, other: Version) -> bool:
        """Whether `other` is the greater (commit time, node name)."""
        return (self.time or _NEVER, self.node) < (other.time or _NEVER, other.node)


@dataclass(slots=True)
class Transaction:
    """A committed transaction of a source.

    `position` is the LSN of its commit record; it is known from the beginning, and tells the transaction from others.
    `via` is the node that handed it to the source (the source itself if it was made there).
    """

    position: LSN
    origin: Origin
    via: str


@dataclass(slots=True)
class Piece:
    """A run of consecutive changes of one transaction; most transactions are one piece, a huge one is many.

    `end` is the position just past the transaction's commit, in its last piece; None in the earlier ones. `seen` is what the source
    had applied of others by then. With `since` the changes are the net effect of all that was committed from there on (a batch) for
    those tables that go on there; None: whatever the transaction did. `awaited`: others may rest on it, so it is
    written even where it changes nothing.
    """

    transaction: Transaction
    changes: list[Change]
    #: estimated memory in bytes
    size: int
    end: LSN | None
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)
    since: LSN | None = None
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """The source has nothing more to send up to `position`, and no transaction is open; `seen` is what it had applied by then.

    `urgent` says that the source waits for it to be confirmed (it is shutting down, checks that we live, or keeps much WAL).
    """

    position: LSN
    urgent: bool
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)


@dataclass(frozen=True, slots=True)
class SlotIdentity:
    """What progress belongs to: a position means nothing in another cluster, database or slot, or past the end of a timeline."""

    #: of the cluster, with the timeline on which it writes its WAL, where that is known: 7311245678901234567/2
    system_identifier: str
    database: str
    slot: str

    @property
    def cluster(self) -> str:
        """What all servers have in common that were made from one another."""
        return self.system_identifier.partition("/")[0]

    @property
    def timeline(self) -> int:
        """A promoted standby and a restored server write a new one; 0 if it is not known."""
        return int(self.system_identifier.partition("/")[2] or 0)


@dataclass(frozen=True, slots=True)
class EdgeName:
    """What tells an edge from all others, and what its progress is kept under."""

    sync: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.sync}: {self.source} -> {self.target}"


class Sharing(enum.Enum):
    """Which transactions a sink takes in one group."""

    NONE = enum.auto()
    ONE_ORIGIN = enum.auto()
    ANY = enum.auto()


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive changes that a sink writes into one target transaction, of one origin unless the sink wants them mixed.

    `origin` is that of the last transaction.
    `position` is what the progress row is set to: every source transaction whose commit record lies before it is in the target;
    `seen` is what the source had applied of others by then. `complete` is False while the last transaction of the group is not
    whole: the target transaction stays open.
    """

    origin: Origin
    changes: Sequence[Change]
    position: LSN
    complete: bool
    transactions: int
    seen: Seen = field(default_factory=lambda: NOTHING_SEEN)
    #: of the last transaction's commit record on the source: it tells transactions apart
    commit: LSN = field(default_factory=LSN)
    #: how many of the changes there are up to the end of each transaction that ends here
    ends: Sequence[int] = ()

    @property
    def idle(self) -> bool:
        """Whether nothing but the position moves."""
        return self.complete and not self.transactions
