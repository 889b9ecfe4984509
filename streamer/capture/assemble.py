"""From decoded messages to pieces of transactions, each with the node that it was first made on. Pure.

A decoder (`pgoutput`, `wal2json`) turns every payload into a message; `Assembler` gathers the changes between Begin and Commit
and cuts them into pieces of about PIECE_BYTES, so that a transaction of any size passes in bounded memory. A transaction that
streamer applied carries a tag: its first change is a row of streamer.progress or streamer.copy, which names the origin.

The trap: what a transaction is (its origin) is known with its first change only, so no piece leaves before that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from streamer.errors import DecodeError
from streamer.model import LSN, UNCHANGED, Change, Identity, Origin, Piece, Relation, Row, TableName, Transaction

PIECE_BYTES: Final = 1 << 20
"""The estimated memory after which a piece is handed on."""

CHANGE_BYTES: Final = 120
"""Python's part of a change, whatever its columns: the two tuples and their place in the list."""

COLUMN_BYTES: Final = 60
"""Python's part of a column's value: the str around its bytes, and its place in the row."""

OWN_SCHEMA: Final = "streamer"
TAGS: Final = frozenset({TableName(OWN_SCHEMA, "progress"), TableName(OWN_SCHEMA, "copy")})
"""Where the first write of every transaction of ours goes: an edge's progress, or the record of a copied table."""


@dataclass(slots=True)
class Begin:
    """A transaction begins: the position of its commit record, and its commit time."""

    position: LSN
    commit_time: datetime


@dataclass(slots=True)
class Commit:
    """The transaction is whole: the position just past its commit record."""

    end: LSN


Message: TypeAlias = Begin | Commit | Change | list[Change] | None
"""What a payload of an output plugin means; None if it only told the decoder something. A list is a TRUNCATE of several."""


def completed(relation: Relation, old: Row, new: Row) -> tuple[Row | None, Row]:
    """Return the old row of an update, None if it says nothing, and the new one with what only the old one carries."""
    if UNCHANGED in new:
        new = tuple([o if n is UNCHANGED else n for o, n in zip(old, new, strict=True)])
    if relation.identity is Identity.FULL:
        return old, new
    # the key comes even if it did not change: always with wal2json, with pgoutput if it is stored out of line
    same = all(o is UNCHANGED or o == n for o, n in zip(old, new, strict=True))
    return None if same else old, new


def partition_truncated(partition: TableName, root: TableName) -> DecodeError:
    """Return the error for a TRUNCATE of some partitions of a table that is replicated as one."""
    return DecodeError(
        f'TRUNCATE of the partition "{partition}" alone cannot be replicated: its rows travel as rows of "{root}"',
        "empty partitions with DELETE; to go on now, copy the table again from a new slot",
    )


class Assembler:
    """The transaction that is being read from the node named `node`.

    `envelope` is what a payload spends on a column besides its value (names, quotes), in bytes: it never gets into memory.
    """

    def __init__(self, node: str, envelope: int = 0) -> None:
        self._node = node
        self._column_bytes = COLUMN_BYTES - envelope
        self._begin: Begin | None = None
        self._transaction: Transaction | None = None
        self._changes: list[Change] = []
        self._size = 0
        #: what a change of a relation adds to its payload, in bytes
        self._row_bytes: dict[Relation, int] = {}

    @property
    def open(self) -> bool:
        """Whether a transaction is under way."""
        return self._begin is not None

    def feed(self, message: Message, size: int) -> Piece | None:
        """Take the message that a payload of `size` bytes gave; return a piece if one is ready.

        Every transaction ends in a piece with `end`, an empty one too. Raises DecodeError if the messages contradict each other.
        """
        if isinstance(message, tuple):
            row_bytes = None if self._transaction is None else self._row_bytes.get(message[1])
            if row_bytes is None:
                row_bytes = self._enter(message)
            if row_bytes is not None:
                self._changes.append(message)
                self._size += size + row_bytes
                if self._size > PIECE_BYTES:
                    return self._cut(None)
            return None
        return self._control(message, size)

    def _control(self, message: Begin | Commit | list[Change] | None, size: int) -> Piece | None:
        if isinstance(message, Begin):
            if self._begin is not None:
                raise DecodeError(f"a transaction begins at {message.position} inside the one at {self._begin.position}")
            self._begin = message
        elif isinstance(message, Commit):
            return self._close(message.end)
        elif message is not None:
            chosen = [change for change in message if self._enter(change) is not None]
            self._changes += chosen
            self._size += size + CHANGE_BYTES * len(chosen)
        return None

    def _enter(self, change: Change) -> int | None:
        """Look at the first change of a transaction or relation; return what each adds to its payload, None if it is ours."""
        if self._begin is None:
            raise DecodeError(f"a change of {change[1]} comes outside any transaction")
        relation = change[1]
        if self._transaction is None:
            self._transaction = self._tagged(change, self._begin) or self._local(self._begin)
        if relation.table.schema == OWN_SCHEMA:
            return None
        row_bytes = self._row_bytes[relation] = CHANGE_BYTES + self._column_bytes * len(relation.columns)
        return row_bytes

    def _local(self, begin: Begin) -> Transaction:
        return Transaction(begin.position, Origin(self._node, begin.position, begin.commit_time), via=self._node)

    def _tagged(self, change: Change, begin: Begin) -> Transaction | None:
        """The transaction as its tag describes it; None if the first change is no tag."""
        _, relation, _, new = change
        if relation.table not in TAGS or new is None:
            return None
        return _read_tag(relation, new, begin)

    def _cut(self, end: LSN | None) -> Piece:
        assert self._transaction is not None
        piece = Piece(self._transaction, self._changes, self._size, end)
        self._changes = []
        self._size = 0
        return piece

    def _close(self, end: LSN) -> Piece:
        if self._begin is None:
            raise DecodeError(f"a transaction ends at {end} that never began")
        if self._transaction is None:
            self._transaction = self._local(self._begin)
        piece = self._cut(end)
        self._begin = self._transaction = None
        return piece


def _read_tag(relation: Relation, row: Row, begin: Begin) -> Transaction:
    """The transaction that a row of streamer.progress tags.

    https://www.postgresql.org/docs/current/datatype-datetime.html#DATATYPE-DATETIME-OUTPUT
    """
    values = dict(zip(relation.names, row, strict=True))
    tag = [values.get(name) for name in ("origin", "source", "origin_position", "origin_time")]
    try:
        origin, via, position, time = (value for value in tag if isinstance(value, str))
        origin_position, commit_time = LSN.parse(position), datetime.fromisoformat(time)
    except ValueError as error:
        raise DecodeError(
            f"the row of {relation} that tags the transaction at {begin.position} cannot be read: {error}",
            "install the same version of streamer on every node, then: streamer setup",
        ) from error
    return Transaction(begin.position, Origin(origin, origin_position, commit_time), via)
