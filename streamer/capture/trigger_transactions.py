"""A batch read transaction by transaction: for syncs with several sources, and for nodes that hand on what others made.

The transactions come from one cursor and the rows of each table from another, all in the same order, and are brought together here:
so memory is bounded whatever the batch holds. The number of a transaction in its batch is the lower half of its position. Whoever
stands in the middle of a batch gets the rest of it, as it was recorded.

The trap: of a batch that was recorded before, rows that were written again since are not told; a transaction may have nothing left.
Others may know of it, though, and rest on it: where several nodes write, the target must hear that it has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from streamer.capture import trigger_order as order
from streamer.capture.applied import Applied
from streamer.capture.assemble import CHANGE_BYTES, PIECE_BYTES, Interest, removal
from streamer.capture.batches import position_of
from streamer.capture.nonblocking import Statements
from streamer.capture.trigger_changes import row_bytes
from streamer.capture.trigger_order import Batch
from streamer.capture.trigger_query import DeltaTable
from streamer.capture.trigger_tables import TriggerTables
from streamer.errors import DecodeError
from streamer.model import LSN, UNCHANGED, Change, Idle, Kind, Origin, Piece, Relation, Row, Seen, TableName, Transaction
from streamer.session import cells
from streamer.versions import read_seen

FETCH_BYTES: Final = 1 << 18
"""What one cursor gives at once, about."""
FETCH_ROWS: Final = (20, 5000)
"""Rows that a cursor gives at first, and at most."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Cells: TypeAlias = list[str | None]
Steps: TypeAlias = Generator[Piece | Idle | None, None, None]
"""What the edges get; None while the server is at work."""


class Share(NamedTuple):
    """What a batch has of a table."""

    table: DeltaTable
    #: how many deltas
    deltas: int
    #: the id of the last truncate, whoever made it
    truncated: int | None


class _Truncates(NamedTuple):
    """The truncates of our tables."""

    #: those of the batch, by the transaction
    told: dict[str, list[Change]]
    #: the id of the last that was made here
    own: dict[TableName, int]


class _Tag(NamedTuple):
    """An applied transaction, by the id of its last delta."""

    last: int
    sync: str
    source: str
    origin: str
    time: str


@dataclass(slots=True)
class _Cursor:
    """Changes in the order of their transactions, of which `head` made the next."""

    name: str
    changes: Callable[[Cells], Sequence[Change]]
    #: what a change takes in memory besides its values, in bytes
    bytes: int
    rows: deque[Cells] = field(default_factory=deque)
    ask: int = FETCH_ROWS[0]
    ended: bool = False

    @property
    def head(self) -> str | None:
        return self.rows[0][0] if self.rows else None


class TransactionReader:
    """Reads batches of the node named `node` on a session that has begun a transaction."""

    def __init__(
        self,
        node: str,
        statements: Statements,
        interest: Interest,
        tables: TriggerTables,
        has_commit_times: bool,
    ) -> None:
        self._node = node
        self._statements = statements
        self._interest = interest
        self._tables = tables
        self.commit_time = order.COMMIT_TIMES if has_commit_times else order.NO_COMMIT_TIMES
        self._held: Piece | None = None

    @property
    def always(self) -> bool:
        """Whether no transactions may be joined."""
        return self._interest.by_transaction

    def read(
        self, batch: Batch, shares: Sequence[Share], seen: Seen, skip: int, *, late: bool
    ) -> Generator[Piece | Idle | None, None, Seen]:
        """Give the transactions of the batch from number `skip` on; return what the node had applied of others by its end, where
        `seen` is that by its beginning. `late` says that the batch was recorded before. Raises psycopg.Error, DecodeError."""
        (result,) = yield from self._statements.run(order.tags(batch))
        tags = [_Tag(int(last or 0), *map(str, rest)) for last, *rest in cells(result)]
        batch = replace(batch, carried={(tag.origin, tag.source) for tag in tags if self._carries(tag)})
        applied = Applied(seen, ((tag.last, tag.origin, datetime.fromisoformat(tag.time)) for tag in tags if self._hears(tag)))
        truncates = yield from self._truncates(batch)
        cursors = yield from self._declare(batch, shares, truncates.own)
        yield from self._merge(batch, cursors, truncates.told, applied, skip, late=late and self._interest.by_transaction)
        end = position_of(batch.end)
        if self._held is None:
            yield Idle(end, urgent=False, seen=applied.all())
        else:
            yield replace(self._held, end=end, seen=applied.all())
            self._held = None
        return applied.all()

    def _carries(self, tag: _Tag) -> bool:
        return self._interest.carries(Transaction(LSN(0), Origin(tag.origin, LSN(0), _EPOCH), tag.source))

    def _hears(self, tag: _Tag) -> bool:
        heard = self._interest.heard
        return tag.origin != self._node and (heard is None or tag.sync in heard)

    # -- what is in the batch ----------------------------------------------------------------------------------------------------

    def _declare(self, batch: Batch, shares: Sequence[Share], own: Mapping[TableName, int]) -> Generator[None, None, list[_Cursor]]:
        """Open the cursors. Where several nodes write, a truncate that came from elsewhere hides nothing that was written before
        it: it does not know of that, and what was written here may be the later one."""
        cursors: list[_Cursor] = []
        texts = ["SET LOCAL cursor_tuple_fraction = 1", _declaration(_TRANSACTIONS, order.transactions(batch, masters=self.always))]
        if self._interest.by_transaction and self._tables.removals is not None:
            texts.append(_declaration("streamer_removals", order.removals(batch, self._tables.removals)))
            cursors.append(_Cursor("streamer_removals", _removal, CHANGE_BYTES))
        for number, (table, deltas, truncated) in enumerate(shares):
            name = f"streamer_{number}"
            after = own.get(table.table) if self.always else truncated
            settings, query = order.rows(batch, table, after, deltas, masters=self.always)
            texts += [settings, _declaration(name, query)]
            cursors.append(_Cursor(name, _changes_of(table.relation), row_bytes(table.relation)))
        yield from self._statements.run("; ".join(texts))
        for cursor in cursors:
            yield from self._fill(cursor)
        return cursors

    def _truncates(self, batch: Batch) -> Generator[None, None, _Truncates]:
        (result,) = yield from self._statements.run(order.truncates(batch))
        found: dict[str, dict[TableName, Change]] = {}
        last: dict[TableName, int] = {}
        for relation, txid, id_, told, own in cells(result):
            if (table := self._tables.of(int(relation or 0))) is None:
                continue
            if told == "t":
                found.setdefault(str(txid), {})[table.table] = (Kind.TRUNCATE, table.relation, None, None)
            if own == "t":
                last[table.table] = int(id_ or 0)
        return _Truncates({txid: list(changes.values()) for txid, changes in found.items()}, last)

    def _fill(self, cursor: _Cursor) -> Generator[None]:
        """Fetch more of a cursor, if there is nothing left of what was fetched."""
        if cursor.rows or cursor.ended:
            return
        (result,) = yield from self._statements.run(f"FETCH {cursor.ask} FROM {cursor.name}")
        cursor.rows.extend(cells(result))
        cursor.ended = len(cursor.rows) < cursor.ask
        size = sum(len(cell) for row in cursor.rows for cell in row if cell is not None)
        cursor.ask = max(1, min(2 * cursor.ask, FETCH_ROWS[1], FETCH_BYTES * cursor.ask // (size + 1)))

    # -- the transactions --------------------------------------------------------------------------------------------------------

    def _merge(
        self,
        batch: Batch,
        cursors: Sequence[_Cursor],
        truncated: Mapping[str, list[Change]],
        applied: Applied,
        skip: int,
        *,
        late: bool,
    ) -> Steps:
        """Give every transaction what the cursors have of it."""
        heads: dict[str, list[_Cursor]] = {}
        for cursor in cursors:
            _enter(heads, cursor)
        listing = _Cursor(_TRANSACTIONS, _removal, 0)
        rank, silent = 0, None
        while True:
            yield from self._fill(listing)
            if not listing.rows:
                break
            row = listing.rows.popleft()
            txid = str(row[0])
            transaction = self._transaction(batch.number, rank, row, applied)
            own, changes = heads.pop(txid, []), truncated.get(txid, [])
            rank += 1
            if not own and not changes:
                silent = transaction if late and rank > skip and transaction.via == self._node else silent
                continue
            if silent is not None and rank > skip:
                yield from self._give(Piece(silent, [], 0, LSN(silent.position + 1), silent.origin.seen, awaited=True))
                silent = None
            for piece in self._pieces(transaction, list(changes), own, heads, applied.by(int(row[1] or 0) + 1)):
                if piece is None:
                    yield None
                elif rank > skip:
                    yield from self._give(piece)
        if silent is not None:
            yield from self._give(Piece(silent, [], 0, LSN(silent.position + 1), silent.origin.seen, awaited=True))

    def _transaction(self, number: int, rank: int, row: Cells, applied: Applied) -> Transaction:
        _, last, moment, source, *tag = row
        position = LSN((number << 32) + rank)
        if source is None:
            time = _EPOCH + timedelta(microseconds=int(moment or 0))
            return Transaction(position, Origin(self._node, position, time, applied.by(int(last or 0))), self._node)
        origin, at, time_text, known = map(str, tag)
        return Transaction(position, Origin(origin, LSN.parse(at), datetime.fromisoformat(time_text), read_seen(known)), source)

    def _pieces(
        self,
        transaction: Transaction,
        changes: list[Change],
        cursors: Sequence[_Cursor],
        heads: dict[str, list[_Cursor]],
        seen: Seen,
    ) -> Iterator[Piece | None]:
        """Cut the changes of a transaction into pieces."""
        size = CHANGE_BYTES * len(changes)
        for cursor in cursors:
            txid = cursor.head
            while cursor.head == txid and txid is not None:
                row = cursor.rows.popleft()
                told = [change for change in cursor.changes(row) if self._interest.selects(change[1].table)]
                if told:
                    changes += told
                    size += cursor.bytes + sum(len(cell) for cell in row if cell is not None)
                if size >= PIECE_BYTES:
                    yield Piece(transaction, changes, size, None, seen)
                    changes, size = [], 0
                yield from self._fill(cursor)
            _enter(heads, cursor)
        yield Piece(transaction, changes, size, LSN(transaction.position + 1), seen)

    def _give(self, piece: Piece) -> Iterator[Piece]:
        """Hand on a piece, but keep back the end of a transaction: it may turn out to be the end of the batch."""
        if self._held is not None:
            yield self._held
            self._held = None
        if piece.end is None:
            yield piece
        else:
            self._held = piece


_TRANSACTIONS: Final = "streamer_transactions"


def _declaration(name: str, query: str) -> str:
    return f"DECLARE {name} NO SCROLL CURSOR FOR {query}"


def _enter(heads: dict[str, list[_Cursor]], cursor: _Cursor) -> None:
    """Put a cursor down for the transaction that its next change belongs to."""
    if cursor.head is not None:
        heads.setdefault(cursor.head, []).append(cursor)


def _changes_of(relation: Relation) -> Callable[[Cells], Sequence[Change]]:
    """What makes changes of a row of the relation's cursor."""
    keyed = tuple(column.identity for column in relation.columns)

    def delete(values: Cells) -> Change:
        old: Row = tuple([value if key else UNCHANGED for value, key in zip(values, keyed, strict=True)])
        return (Kind.DELETE, relation, old, None)

    def changes(row: Cells) -> Sequence[Change]:
        _, kind, *values = row
        if kind == "d":
            return [delete(values)]
        if kind == "r":
            return [delete(values), (Kind.INSERT, relation, None, tuple(values))]
        return [(Kind.INSERT if kind == "i" else Kind.UPDATE, relation, None, tuple(values))]

    return changes


def _removal(row: Cells) -> Sequence[Change]:
    """The delete that a row of streamer.removal stands for."""
    _, schema, name, key = map(str, row)
    try:
        return [removal(TableName(schema, name), key)]
    except ValueError as error:
        raise DecodeError(
            f"a row of streamer.removal cannot be read: {error}", "install the same version of streamer on every node"
        ) from error
