"""How the edges of several sources into one target agree on where each of them begins with a table.

The first to copy a table serves the others too: its snapshot holds what its source had applied of theirs. For that to be exact,

- edges decide one after another: the lock `joins`;
- where an edge goes on is recorded by another one only while it does not stream (the lock `streams X`), and is not past that yet;
- the source of the copy has settled the table with the other sources, so that no part of what they have is missing;
- an edge whose table is empty on both sides does not stream before the others have decided: one of them may be about to copy it.

Copied rows have no versions but where that matters: what is still on its way from another source was made after all that the
snapshot holds of it, and with knowledge of what that source had seen by then. What is older than both need not be told.

All locks are only tried. Who does not get one gives back what it has and comes again, so there is no deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from streamer.model import LSN, NOTHING_SEEN, POSTGRES_EPOCH, EdgeName, TableName
from streamer.ports import CopyTable, Held, Progress, RowVersion, Sink, Snapshot, Source

JOINS: Final = "joins"
OUT_OF_ORDER: Final = timedelta(minutes=1)
"""How much earlier than one before it in the stream a transaction may have taken its commit time."""
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Joining:
    """One edge's part in it; `others` are the other sources that feed the target."""

    def __init__(self, edge: EdgeName, others: Sequence[str], sink: Sink) -> None:
        self._edge = edge
        self._others = others
        self._sink = sink

    def start_streaming(self, progress: Progress) -> bool:
        """Count as an edge that streams, and learn what others have recorded for us by then; False if one is about to do so."""
        return self._locked(_streams(self._edge.source), progress)

    def lock(self, progress: Progress) -> bool:
        """Keep the other edges from deciding, and learn what they have recorded for us; False if one of them is at it."""
        return self._locked(JOINS, progress)

    def _locked(self, name: str, progress: Progress) -> bool:
        if not self._sink.try_lock(name):
            return False
        progress.copied.update(self._sink.progress_by_source()[self._edge.source].copied)
        return True

    def release(self, *, streaming: bool = False) -> None:
        """Give back all locks; with `streaming`, all but the one that says so."""
        for source in self._others:
            self._sink.unlock(_streams(source))
        if not streaming:
            self._sink.unlock(_streams(self._edge.source))
        self._sink.unlock(JOINS)

    def not_begun(self) -> str | None:
        """Return which other edge into the target has not begun, if one has not: a snapshot made before could lack what its slot no
        longer has."""
        begun = self._sink.progress_by_source()
        return next((f"edge {self._into_target(other)} has not begun" for other in self._others if other not in begun), None)

    def others(self, tables: Sequence[CopyTable], held: Mapping[str, Held]) -> dict[TableName, dict[str, LSN]] | str:
        """Return where the other edges go on with each table after a copy of what is `held`; or what is in the way."""
        starts: dict[TableName, dict[str, LSN]] = {table.table: {} for table in tables}
        for other in self._others:
            for table in starts:
                if other not in held or table not in held[other].progress.copied:
                    return f'edge {self._into_source(other)} has not begun with table "{table}"'
            free = self._sink.try_lock(_streams(other))
            theirs = self._sink.progress_by_source()[other]
            for table in starts:
                start = max(held[other].progress.position, held[other].progress.copied[table])
                recorded = theirs.copied.get(table)
                if free and theirs.position <= start:
                    starts[table][other] = max(start, recorded or start)
                elif recorded is None or (not free and theirs.position < start):
                    return self._out_of_step(other, table, free)
        return starts

    def _out_of_step(self, other: str, table: TableName, free: bool) -> str:
        if free:
            return f"edge {self._into_source(other)} is behind edge {self._into_target(other)}"
        return (
            f'edge {self._into_target(other)} streams already, without what the copy of "{table}" holds of it; restart its daemon'
        )

    def unsettled(self, progress: Progress) -> str | None:
        """Return which edge has yet to say whether it copies a table that is still empty, if one has."""
        begun = self._sink.progress_by_source()
        for table, start in progress.copied.items():
            undecided = [o for o in self._others if o not in begun or table not in begun[o].copied]
            if undecided and progress.position <= start and self._sink.is_empty(table):
                return f'edge {self._into_target(undecided[0])} has not begun with table "{table}"'
        return None

    def _into_target(self, other: str) -> EdgeName:
        return EdgeName(self._edge.sync, other, self._edge.target)

    def _into_source(self, other: str) -> EdgeName:
        return EdgeName(self._edge.sync, other, self._edge.source)


def lacks_rows(edge: EdgeName, source: Source) -> str | None:
    """Return what keeps the changes of the edge's source from being told: they would come back to it with the rows of a copy.

    Raises what `tables` of the source raises.
    """
    awaiting = next((table.table for table in source.tables() if table.awaits_rows), None)
    return None if awaiting is None else f'"{edge.source}" waits for the rows of table "{awaiting}" itself'


def _streams(source: str) -> str:
    """The lock that an edge from this source has while it streams."""
    return f"streams {source}"


@dataclass(frozen=True, slots=True)
class Settled:
    """Up to which commit time of each node what is still to come from the other sources comes after it and had seen it.

    `rest` is the same for nodes that are not named.
    """

    by_node: Mapping[str, datetime]
    rest: datetime

    def unsettled(
        self, snapshot: Snapshot, table: TableName, key: Sequence[str], floor: datetime, here: datetime | None
    ) -> Iterator[RowVersion]:
        """Give the versions that may matter: to what is still to come, or, if they are newer than `here`, to the target's own rows.

        None that is older than `floor`.
        """
        own = _NEVER if here is None else here
        since = max(floor, min((own, self.rest, *self.by_node.values())))
        if since == _NEVER:
            return
        for row in snapshot.versions(table, key, since):
            if row.version.time is not None and row.version.time > min(own, self.by_node.get(row.version.node, self.rest)):
                yield row


def settled(source: str, target: str, others: Sequence[str], held: Mapping[str, Held]) -> Settled:
    """Return what is settled of the snapshot that holds this of the others."""
    times = {other: (held[other].time if other in held else POSTGRES_EPOCH) - OUT_OF_ORDER for other in others}
    known = {other: held[other].progress.seen if other in held else NOTHING_SEEN for other in others}

    def of(node: str) -> datetime:
        seen = [min(times[x], known[x].get(node, POSTGRES_EPOCH) - OUT_OF_ORDER) for x in others if x != node]
        return min(seen, default=_NEVER)

    return Settled({node: of(node) for node in (source, target, *others)}, min(times.values(), default=_NEVER))
