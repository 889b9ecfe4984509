"""What a table that streamer makes gets when its rows are there: indexes and constraints, as pg_restore's section post-data.

`setup` records each of them on the target, with the table, as the statement that makes it; the edge executes it before it streams.
The trap: a table whose ranges were copied from different snapshots, or two tables that were, may contradict themselves until the
stream has passed the last of these. So what is unique, and foreign keys, wait for that; other indexes need not.

https://www.postgresql.org/docs/current/app-pgrestore.html
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias

from streamer.model import LSN, CopiedRange, Creation, TableName

Kind: TypeAlias = Literal["index", "unique", "attach", "check", "foreign key"]
"""`unique` is each index, or constraint, that several rows together may contradict; `attach` puts an index of a partition below the
one of its table."""

TOGETHER: Final = ("unique", "foreign key")
"""What rows of different times may contradict."""


@dataclass(frozen=True, slots=True)
class PostData:
    """A statement that makes an index or a constraint on a target."""

    kind: Kind
    #: whose rows must be there, as the source calls the tables; of a foreign key also the table that it refers to
    tables: tuple[TableName, ...]
    #: the relation that gets it, which may be a partition, and its name there; empty if the server finds one
    on: TableName
    name: str
    statement: str
    #: for people
    what: str
    #: of the record on the target
    number: int = 0
    #: why the target did not take it; empty if it has not been asked yet
    refused: str = ""


class Builder(Protocol):
    """Makes what is recorded on a target for one edge; each call has a connection of its own, so threads may make several."""

    def listed(self) -> Sequence[PostData]:
        """Return what is not made yet, in the order of the records. Raises TargetError, ConnectError."""

    def build(self, one: PostData) -> str:
        """Make it and delete its record, both or neither; or record why the target refuses it, and return that, in one line.

        What is there already, or is no longer recorded, is left alone. Raises TargetError, ConnectError.
        """


@dataclass(frozen=True, slots=True)
class Task:
    """One that is being made."""

    what: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Refusal:
    """One that the target does not take."""

    what: str
    reason: str
    statement: str


@dataclass(frozen=True, slots=True)
class PostDataReport:
    """What is still to be made of an edge's tables."""

    #: that wait for rows, for a position, or for their turn
    waiting: int = 0
    building: list[Task] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


REMEDY: Final = "cure what it says, then: streamer setup, and start the daemon anew; or execute it yourself: {statement}"


@dataclass(slots=True)
class Structure:
    """What makes some tables on a target: before their rows, and after them."""

    before: list[Creation] = field(default_factory=list)
    after: list[PostData] = field(default_factory=list)
    #: what is not made, and why, for people
    left_out: list[str] = field(default_factory=list)

    def __iadd__(self, other: Structure) -> Structure:
        """Both, one after the other."""
        self.before += other.before
        self.after += other.after
        self.left_out += other.left_out
        return self


First: TypeAlias = Callable[[TableName, Collection[str]], bool]
"""Whether a unique index of the table with these columns must be there before its rows, because changes find rows by it."""


def begins(
    one: PostData, copied: Mapping[TableName, LSN], ranges: Mapping[TableName, Sequence[CopiedRange]], whole: Collection[TableName]
) -> LSN | None:
    """Return the position from which on it can be made, None if rows are missing: by where the changes of each table begin, and
    those of ranges. `whole` are the tables that are copied whole, again and again. Pure."""
    starts = set[LSN]()
    for table in one.tables:
        position = copied.get(table, LSN(0))
        if not position and table not in whole:
            return None
        starts |= {position, *(part.position for part in ranges.get(table, ()))} if position else set()
    return max(starts) if one.kind in TOGETHER and len(starts) > 1 else LSN(0)


def rounds(objects: Sequence[PostData]) -> list[list[PostData]]:
    """Return them in the order in which they are made. What is in one round may be made at the same time: indexes, each of which
    asks for one table only. Pure."""
    indexes = [one for one in objects if one.kind in ("index", "unique")]
    return [indexes, *([one] for kind in ("attach", "check", "foreign key") for one in objects if one.kind == kind)]
