"""From the rows that a batch copies out to changes, and to pieces of about PIECE_BYTES. Pure.

A delete has the values of the key only, all others are UNCHANGED, as the captures by WAL have it. The trap: pieces of one
transaction may tell what happened since different positions, and an edge takes only what follows its own: a piece never mixes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamer.capture.assemble import CHANGE_BYTES, COLUMN_BYTES, PIECE_BYTES
from streamer.copytext import parse
from streamer.model import LSN, UNCHANGED, Change, Kind, Piece, Relation, Seen, Transaction, Value


def row_bytes(relation: Relation) -> int:
    """Return what a change of the relation takes in memory besides its values."""
    return CHANGE_BYTES + COLUMN_BYTES * len(relation.columns)


def deletes_of(relation: Relation, block: bytes) -> list[Change]:
    """Return the deletes of the rows whose keys are in a block of COPY text."""
    keyed = [i for i, column in enumerate(relation.columns) if column.identity]
    changes: list[Change] = []
    for key in parse(block):
        old: list[Value] = [UNCHANGED] * len(relation.columns)
        for i, value in zip(keyed, key, strict=True):
            old[i] = value
        changes.append((Kind.DELETE, relation, tuple(old), None))
    return changes


def rows_of(relation: Relation, block: bytes) -> list[Change]:
    """Return the inserts and updates in a block of COPY text: i or u, and the row."""
    return [(Kind.INSERT if row[0] == "i" else Kind.UPDATE, relation, None, row[1:]) for row in parse(block)]


class Pieces:
    """Cuts the changes of one transaction into pieces; `end` is the position just past it, `seen` what the source had applied."""

    def __init__(self, transaction: Transaction, end: LSN, seen: Seen) -> None:
        self._transaction = transaction
        self._seen = seen
        self._end = end
        self._since = transaction.position
        self._changes: list[Change] = []
        self._size = 0

    def add(self, since: LSN, changes: Sequence[Change], size: int) -> Iterator[Piece]:
        """Take changes that are the net effect from `since` on, of so many bytes; give the pieces that are ready."""
        if since != self._since and self._changes:
            yield self._cut(None)
        self._since = since
        self._changes += changes
        self._size += size
        if self._size >= PIECE_BYTES:
            yield self._cut(None)

    def last(self) -> Piece:
        """Return the last piece."""
        return self._cut(self._end)

    def _cut(self, end: LSN | None) -> Piece:
        piece = Piece(self._transaction, self._changes, self._size, end, self._seen, self._since)
        self._changes, self._size = [], 0
        return piece
