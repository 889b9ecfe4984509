"""Which transactions and changes an edge carries: the forwarding rule, and where each of its tables begins. Pure.

Within a sync a transaction comes straight from the node that it was first made on, if an edge leads from there; else whoever
received it hands it on. `forwards` is the one place that says so, for the running stream and the topology check alike. Tables are
chosen in the capture already (publication, plugin options).

The trap: the rule alone prevents echoes between two nodes and in a mesh, not in every graph. It needs `topology.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from streamer.key_ranges import RangeStarts
from streamer.model import LSN, Change, CopiedRange, Group, Piece, Relation, TableName, Transaction


def forwards(*, source: str, target: str, origin: str, via: str, feeders: Collection[str]) -> bool:
    """Return whether the edge source -> target of a sync carries a transaction first made on `origin`.

    `via` is the node that handed it to the source (the source itself if it was made there); `feeders` are the sources of the sync
    that have an edge to the target.
    """
    if target in (origin, via):
        return False
    if origin == source:
        return True
    # the target gets it from its origin directly, or from the feeder that it came in by
    return origin not in feeders and via not in feeders


class Route:
    """One edge's answer to the forwarding rule, worked out once for each way that transactions come."""

    def __init__(self, source: str, target: str, feeders: Collection[str]) -> None:
        self._source = source
        self._target = target
        self._feeders = frozenset(feeders)
        self._known: dict[tuple[str, str], bool] = {}

    def accepts(self, transaction: Transaction) -> bool:
        """Return whether the edge carries the transaction."""
        way = transaction.origin.node, transaction.via
        answer = self._known.get(way)
        if answer is None:
            answer = self._known[way] = forwards(
                source=self._source,
                target=self._target,
                origin=transaction.origin.node,
                via=transaction.via,
                feeders=self._feeders,
            )
        return answer


class Starts:
    """Where an edge that stands at `position` goes on for each of its tables: a copied one holds what was committed before."""

    def __init__(
        self, by_table: Mapping[TableName, LSN], position: LSN, ranges: Mapping[TableName, Sequence[CopiedRange]] | None = None
    ) -> None:
        self._by_table = by_table
        self._ranges = {table: RangeStarts(table, copied) for table, copied in (ranges or {}).items()}
        #: from here on the tables together are as they were on the source
        self.settled_from = max(by_table.values(), default=position)
        self._joined: set[Relation] = set()
        #: where changes of each table begin, or of its ranges
        self.positions: Mapping[TableName, Collection[LSN]] = {table: (start,) for table, start in by_table.items()} | {
            table: of.positions for table, of in self._ranges.items()
        }

    def consistent_from(self, position: LSN) -> str:
        """Return where the tables are as of one time again; empty if at `position` they are."""
        times = {max(start, position) for starts in self.positions.values() for start in starts}
        return str(self.settled_from) if len(times) > 1 else ""

    def settle_between(self, position: LSN, later: LSN) -> bool:
        """Whether the tables are not as of one time at a position, and are at a later one."""
        return position < self.settled_from <= later and bool(self.consistent_from(position))

    def begin_session(self) -> None:
        """A new session of the stream brings relations of its own."""
        self._joined.clear()

    def changes(self, piece: Piece) -> list[Change]:
        """Return those changes of a piece that the edge's tables do not hold yet. Raises CopyAnew."""
        position, starts = piece.transaction.position, self._by_table
        relations = {c[1] for c in piece.changes}
        if not relations <= self._joined:  # relations compare by identity, which is much cheaper than by name
            self._joined.update(r for r in relations if r.table in starts)
        # a table that has joined the stream since the edge began is copied first, with the next start
        since = position if piece.since is None else piece.since
        if since == position >= self.settled_from and relations <= self._joined:
            return piece.changes

        def applies(start: LSN | None) -> bool:
            return start is not None and since == max(start, position)

        if self._ranges.keys().isdisjoint(r.table for r in relations):
            return [c for c in piece.changes if applies(starts.get(c[1].table))]
        return [ours for c in piece.changes for ours in self._of_ranges(c, applies)]

    def contradicted(self, groups: Iterable[Group], position: LSN | None) -> set[TableName]:
        """Return those tables of groups that are as of different times, at this position: where the target has refused one of
        the changes, that may be why."""
        changed = {change[1].table for group in groups for change in group.changes}
        return {table for table in changed & self._ranges.keys() if position is None or position < self._by_table[table]}

    def _of_ranges(self, change: Change, applies: Callable[[LSN | None], bool]) -> Iterable[Change]:
        ranges = self._ranges.get(change[1].table)
        if ranges is not None:
            return ranges.changes(change, applies)
        return [change] if applies(self._by_table.get(change[1].table)) else []
