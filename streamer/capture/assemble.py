"""From decoded messages to pieces of transactions, each with the node that it was first made on. Pure.

A decoder (`pgoutput`, `wal2json`) turns every payload into a message; `Assembler` gathers the changes between Begin and Commit
and cuts them into pieces of about PIECE_BYTES, so that a transaction of any size passes in bounded memory. A transaction that
streamer applied carries a tag: its first change is a row of TAGS, which names the origin. From the
tags that have passed, the assembler also knows what its node had seen of others when it made a transaction of its own.

The trap: what a transaction is (its origin) is known with its first change only, so no piece leaves before that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import orjson

from streamer.errors import DecodeError
from streamer.model import (
    LSN,
    NOTHING_SEEN,
    UNCHANGED,
    Change,
    Column,
    Identity,
    Kind,
    Origin,
    Piece,
    Relation,
    Row,
    Seen,
    TableName,
    Transaction,
    all_seen,
)
from streamer.versions import read_seen

PIECE_BYTES: Final = 1 << 20
"""The estimated memory after which a piece is handed on."""

CHANGE_BYTES: Final = 120
"""Python's part of a change, whatever its columns: the two tuples and their place in the list."""

COLUMN_BYTES: Final = 60
"""Python's part of a column's value: the str around its bytes, and its place in the row."""

OWN_SCHEMA: Final = "streamer"
TAGS: Final = frozenset(TableName(OWN_SCHEMA, name) for name in ("progress", "copy", "copied_part"))
"""Where the first write of every transaction of ours goes: an edge's progress, or the record of a copied table."""
REMOVALS: Final = TableName(OWN_SCHEMA, "removal")
"""Where a node writes the key of a row that it refused for good: everybody is to delete it, though the node never had it."""
OWN_TABLES: Final = TAGS | {REMOVALS}
"""The tables of ours that a stream carries besides the user's."""


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


@dataclass(frozen=True, slots=True)
class Interest:
    """What a stream wants of its source."""

    #: the tables of the sync
    selects: Callable[[TableName], bool] = lambda table: True
    #: the syncs of whose transactions it is noted what the node has seen; None: all
    heard: Collection[str] | None = None
    #: whether any edge wants the transaction; asked only of those that streamer applied
    carries: Callable[[Transaction], bool] = lambda transaction: True
    #: the tables that are copied whole, so that nobody wants their changes
    whole: Callable[[TableName], bool] = lambda table: False
    #: whether a table that has no key at all may be copied whole
    copyable: Callable[[TableName], bool] = lambda table: False
    #: what the config names as the key of a table, if it does
    keys: Callable[[TableName], Sequence[str]] = lambda table: ()
    #: whether each transaction must come by itself, with its own commit time, because several nodes write
    by_transaction: bool = False
    #: how many nodes there are whose writing of progress the others read
    echoing: int = 0


EVERYTHING: Final = Interest()


class Assembler:
    """The transaction that is being read from the node named `node`.

    `envelope` is what a payload spends on a column besides its value (names, quotes), in bytes: it never gets into memory.
    While `passing` is set, the rows of the transaction need not be decoded: nobody wants it. `known` is what the node is known to
    have applied of others by certain positions, in order.
    """

    def __init__(
        self, node: str, envelope: int = 0, interest: Interest = EVERYTHING, known: Sequence[tuple[LSN, Seen]] = ()
    ) -> None:
        self._node = node
        self._interest = interest
        self._hears = False
        self.passing = False
        self._known = deque(known)
        self._seen: Seen = NOTHING_SEEN
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

    def seen(self, position: LSN) -> Seen:
        """What the node had applied of others by `position`, which is not less than those before."""
        while self._known and self._known[0][0] <= position:
            self._seen = all_seen(self._seen, self._known.popleft()[1])
        return self._seen

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
            if self._known:
                self.seen(message.position)
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
            tagged = self._tagged(change, self._begin)
            self._transaction = tagged or self._local(self._begin)
            self.passing = tagged is not None and not self._interest.carries(tagged)
        if relation.table.schema == OWN_SCHEMA:
            if relation.table == REMOVALS and change[3] is not None:
                self._remove(relation, change[3])
            return None
        row_bytes = self._row_bytes[relation] = CHANGE_BYTES + self._column_bytes * len(relation.columns)
        return row_bytes

    def _local(self, begin: Begin) -> Transaction:
        return Transaction(begin.position, Origin(self._node, begin.position, begin.commit_time, self._seen), via=self._node)

    def _remove(self, relation: Relation, row: Row) -> None:
        """Take a row of streamer.removal for the delete that it stands for."""
        change = _read_removal(relation, row)
        if self._interest.selects(change[1].table):
            self._changes.append(change)
            self._size += CHANGE_BYTES

    def _note(self, origin: Origin) -> None:
        """Remember that our node has applied the transaction. Transactions share the mapping, so it is replaced, not changed."""
        known = self._seen.get(origin.node)
        if origin.node != self._node and (known is None or origin.commit_time > known):
            self._seen = {**self._seen, origin.node: origin.commit_time}

    def _tagged(self, change: Change, begin: Begin) -> Transaction | None:
        """The transaction as its tag describes it; None if the first change is no tag."""
        _, relation, _, new = change
        if relation.table not in TAGS or new is None:
            return None
        heard = self._interest.heard
        self._hears = heard is None or dict(zip(relation.names, new, strict=True)).get("sync") in heard
        return _read_tag(relation, new, begin)

    def _cut(self, end: LSN | None) -> Piece:
        assert self._transaction is not None
        piece = Piece(self._transaction, self._changes, self._size, end, self._seen)
        self._changes = []
        self._size = 0
        return piece

    def _close(self, end: LSN) -> Piece:
        if self._begin is None:
            raise DecodeError(f"a transaction ends at {end} that never began")
        if self._transaction is None:
            self._transaction = self._local(self._begin)
        if self._transaction.via != self._node and self._hears:
            self._note(self._transaction.origin)
        piece = self._cut(end)
        self._begin = self._transaction = None
        self.passing = False
        return piece


def _read_tag(relation: Relation, row: Row, begin: Begin) -> Transaction:
    """The transaction that a row of one of TAGS tags.

    https://www.postgresql.org/docs/current/datatype-datetime.html#DATATYPE-DATETIME-OUTPUT
    """
    values = dict(zip(relation.names, row, strict=True))
    tag = [values.get(name) for name in ("origin", "source", "origin_position", "origin_time")]
    try:
        origin, via, position, time = (value for value in tag if isinstance(value, str))
        seen = read_seen(text) if isinstance(text := values.get("seen"), str) else NOTHING_SEEN  # none in a copied table's record
        return Transaction(begin.position, Origin(origin, LSN.parse(position), datetime.fromisoformat(time), seen), via)
    except ValueError as error:
        raise _unreadable(relation, begin.position, error) from error


def _read_removal(relation: Relation, row: Row) -> Change:
    """The delete that a row of streamer.removal stands for."""
    values = dict(zip(relation.names, row, strict=True))
    try:
        schema, name, key = (v for v in map(values.get, ("schema_name", "table_name", "key")) if isinstance(v, str))
        return removal(TableName(schema, name), key)
    except ValueError as error:
        raise _unreadable(relation, None, error) from error


def removal(table: TableName, key: str) -> Change:
    """Return the delete of a key, which is a JSON object; the relation has the key's columns only. Raises ValueError."""
    columns: dict[str, str] = orjson.loads(key)
    removed = Relation(table, tuple(Column(c, 0, identity=True) for c in columns), Identity.DEFAULT)
    return (Kind.DELETE, removed, tuple(columns.values()), None)


def _unreadable(relation: Relation, position: LSN | None, error: Exception) -> DecodeError:
    where = "" if position is None else f" of the transaction at {position}"
    return DecodeError(
        f"the row of {relation}{where} cannot be read: {error}",
        "install the same version of streamer on every node, then: streamer setup",
    )
