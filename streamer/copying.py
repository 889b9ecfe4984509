"""The beginning of an edge: is its progress still about this slot, and which tables must be copied first.

Every table is copied in one target transaction together with the record of it, so that a broken copy leaves nothing and is simply
made again. A copied table starts at its snapshot's position, one that was kept at the slot's: until the edge has passed the
highest of them, changes of a table that its rows hold already are left out (`Edge` does that).

Tables that are copied whole come last, as often as `FullCopies` says. Their record has the position 0/0, because no changes follow;
so one whose changes are wanted later is told from one that was copied for that.

Where several sources feed the target, the copy of one holds what it had applied of the others, so it records where their edges go
on as well. They decide one after another, and none streams before that is settled (joining.py).
"""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Literal, TypeAlias

import structlog

from streamer.copy_jobs import RANGE_ROWS, CopyJobs
from streamer.errors import SlotError, TakenError, forgotten_rows, no_longer_captured, no_longer_carried, start_over
from streamer.full_copies import FullCopies
from streamer.joining import Joining, Settled, lacks_rows, settled
from streamer.key_ranges import CopyAnew
from streamer.model import LSN, POSTGRES_EPOCH, EdgeName, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, Sink, SlotState, Snapshot, Source, Start
from streamer.post_data_jobs import PostDataJobs
from streamer.report import State
from streamer.workers import BrokenOff

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 3.0
"""Seconds between two attempts to copy while other edges are in the way."""
SHORT_WAITS: Final = 5
"""Attempts that may fail before the log says so: edges that begin together are in each other's way for a moment."""

Policy: TypeAlias = Literal["never", "if-empty", "always"]


def prepare(edge: EdgeName, source: Source, sink: Sink, copy: InitialCopy, stopped: Callable[[], bool]) -> Progress:
    """Open the sink and bring the target to where streaming can begin; return its progress.

    Raises SlotError if the progress belongs to another slot or the slot no longer has what follows it, and what the ends raise.
    """
    try:
        progress = sink.open()
    except TakenError:
        copy.began = True  # by another daemon
        raise
    try:
        state = source.state()
    except SlotError as error:
        if progress is None:  # nothing has been replicated yet, so nothing is lost
            raise SlotError(error.message, "run: streamer setup") from None
        raise
    copy.forgotten = copy.began and progress is None
    if progress is None:
        sink.begin(state.identity, state.confirmed)
        progress = Progress(state.identity, state.confirmed, {})
    if not verify(edge, progress.slot, progress.position, state):
        sink.follow(state.identity)
        progress = dataclasses.replace(progress, slot=state.identity)
    copy.run(source, sink, progress, stopped)
    copy.began = True
    return progress


def verify(edge: EdgeName, ours: SlotIdentity, position: LSN, state: SlotState) -> bool:
    """Refuse to skip over changes that nobody can read any more: raise SlotError unless the slot is `ours`, with all from
    `position` on. Return whether it is still read on the timeline that is recorded; else the new one must be, before the edge
    goes on: past the place where the source went over, a position is valid on the new one only."""
    way_on = start_over(edge.sync)
    theirs = state.identity
    if theirs.cluster != ours.cluster and state.batches:
        raise SlotError(
            f'edge {edge}: the progress on "{edge.target}" belongs to another installation of the triggers than that on '
            f'"{edge.source}": they were removed and made anew, the source was restored from a dump, or it is another database',
            f"correct nodes.{edge.source}.url; or, {way_on}",
        )
    if theirs.cluster != ours.cluster:
        raise SlotError(
            f'edge {edge}: the progress on "{edge.target}" belongs to cluster {ours.cluster}, '
            f'node "{edge.source}" is cluster {theirs.cluster}',
            f"correct nodes.{edge.source}.url; or, {way_on}",
        )
    if (theirs.database, theirs.slot) != (ours.database, ours.slot):
        raise SlotError(
            f'edge {edge}: the progress on "{edge.target}" belongs to slot "{ours.slot}" of database "{ours.database}", '
            f'not to "{theirs.slot}" of "{theirs.database}"',
            f"correct nodes.{edge.source}.url; if the database was renamed, rename it back; or, {way_on}",
        )
    if state.exact and state.confirmed > position:
        kind = "stream" if state.batches else "slot"
        raise SlotError(
            f'{kind} "{theirs.slot}" on "{edge.source}" starts at {state.confirmed}, but "{edge.target}" holds only what was '
            f"committed before {position}: the {kind} was created anew or advanced, and the changes between are lost",
            way_on,
        )
    if state.current < position:
        end = f'last batch of "{edge.source}" is' if state.batches else f'WAL of "{edge.source}" ends at'
        raise SlotError(
            f'the {end} {state.current}, but "{edge.target}" holds what was committed before {position}: the source was restored '
            "from a backup",
            way_on,
        )
    if _lacks(state, ours, position):
        raise SlotError(
            f'"{edge.source}" is on timeline {theirs.timeline} of its WAL, and never had all that "{edge.target}" holds, which was '
            f"committed on timeline {ours.timeline} before {position}: a standby was promoted that lagged behind, or the source "
            "was restored from a backup",
            way_on,
        )
    return theirs.timeline == ours.timeline


def _lacks(state: SlotState, ours: SlotIdentity, position: LSN) -> bool:
    """Whether the source went over to another timeline before the position, which was reached on `ours`."""
    if ours.timeline in (0, state.identity.timeline):
        return False
    left = state.switches.get(ours.timeline)
    return position > left if left is not None else bool(state.switches) or ours.timeline > state.identity.timeline


class InitialCopy:
    """Copies the tables of one edge that need it, several at once; `jobs` tells how far it is.

    `feeders` are all sources that feed the target, `returns` tells whether the target is a source of the sync itself, `shaped`
    which columns and rows of a table are read, `held` why no copy may begin now, and `range_rows` how many rows a range has.
    `hasten` has the other sources' streams note how far they are, which a copy may wait for. Raises what those raise.
    """

    def __init__(
        self,
        edge: EdgeName,
        policy: Policy,
        jobs: int,
        feeders: Sequence[str] = (),
        *,
        returns: bool = False,
        shaped: Callable[[CopyTable], CopyTable] | None = None,
        full: FullCopies | None = None,
        held: Callable[[], str] = lambda: "",
        hasten: Callable[[], None] = lambda: None,
        range_rows: int = RANGE_ROWS,
    ) -> None:
        self._edge = edge
        self._policy = policy
        self._others = tuple(feeder for feeder in feeders if feeder != edge.source)
        self._returns = returns
        self._shaped = shaped
        self._held = held
        self._hasten = hasten
        #: the tables that are copied whole
        self.full = full or FullCopies(None)
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self.jobs = CopyJobs(edge, jobs, range_rows)
        #: what makes indexes and constraints of tables that have their rows
        self.post_data = PostDataJobs(edge, jobs)
        #: finished tables that are to be copied once more, and why
        self._again: dict[TableName, str] = {}
        self._ignored: set[TableName] = set()
        #: tables that were empty when we first looked: what comes in meanwhile does not make them ones to keep
        self._chosen: set[TableName] = set()
        #: the target had progress before, and has none any more: somebody starts over
        self.began = self.forgotten = False
        #: what the copy waits for, if it does
        self.obstacle: str | None = None
        self._complained = ""

    def run(self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool]) -> None:
        """Copy what needs it, and note in `progress` where every table of the edge starts. Raises SourceError if a table was
        carried once and is no longer; otherwise what the ends raise."""
        self._bring_records_up_to_date({t.table for t in source.tables()}, sink, progress)
        joining = Joining(self._edge, self._others, sink) if self._others else None
        try:
            for attempt, pause in enumerate(_pauses()):
                self.obstacle = (
                    self._decide(source, sink, progress, stopped, None)
                    or (lacks_rows(self._edge, source) if self._returns else None)
                    if joining is None
                    else self._attempt(source, sink, progress, stopped, joining)
                )
                if self.obstacle is None:
                    break
                if attempt >= SHORT_WAITS:
                    self._complain(self.obstacle)
                    if attempt.bit_count() == 1:  # more and more rarely: it is a write on every target
                        self._hasten()
                _sleep(pause, stopped)
        finally:
            self.obstacle = None
        if joining is None:
            self._copy_whole(source, sink, progress, stopped)
        self.post_data.run(sink, progress, {t.table for t in source.tables() if t.whole}, stopped)

    def copy_again(self, table: TableName, reason: str) -> None:
        """Have the table copied once more, from one snapshot, when the edge begins again; its rows go before. For any thread."""
        self._again[table] = reason

    def wanted(self, position: LSN | None) -> bool:
        """Whether an edge that has come to this position must leave the stream, so that tables are copied or get their indexes."""
        return bool(self._again) or self.full.due or self.post_data.due(position)

    @property
    def state(self) -> State | None:
        """What is being done, None if nothing is."""
        if self.jobs.running:
            return State.COPYING
        return State.INDEXING if self.post_data.running else None

    def _bring_records_up_to_date(self, tables: Collection[TableName], sink: Sink, progress: Progress) -> None:
        """Forget tables that the sync selects no longer, mark those that are to be copied anew, and forget ranges that the stream
        has passed."""
        for table in [t for t, at in progress.copied.items() if at and t not in tables]:  # what is not whole must not look so
            self._log.info("table_left", table=str(table))
            self._forget_ranges(table, sink, progress)
            sink.leave(table)
            del progress.copied[table]
        for table, reason in list(self._again.items()):
            if table in progress.copied:
                self._log.warning("copy_restarted", table=str(table), reason=reason)
                sink.keep(table, LSN(0))
                progress.copied[table] = LSN(0)
                self._forget_ranges(table, sink, progress)
            del self._again[table]
        for table in [t for t in progress.ranges if (at := progress.copied.get(t)) and progress.position >= at]:
            self._forget_ranges(table, sink, progress)

    def _forget_ranges(self, table: TableName, sink: Sink, progress: Progress) -> None:
        if progress.ranges.pop(table, None) is not None and sink.ranges is not None:
            sink.ranges.forget(table)

    def _copy_whole(self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool]) -> None:
        """Copy the tables of which no changes come, if it is time; in `progress` they are none of the edge's."""
        tables = [t for t in source.tables() if t.whole and self._is_there(t, sink, progress)]
        for table in tables:
            progress.copied.pop(table.table, None)
        wanted = self.full.wanted(tables)
        if not wanted:
            return
        with source.snapshot() as snapshot:
            start = Start(LSN(0), snapshot.time, replace=True, gently=True)
            self.jobs.run(snapshot, sink, dict.fromkeys(self._read(wanted), start), stopped, self.full.note)
        self.full.end_round()

    def _complain(self, obstacle: str) -> None:
        if obstacle != self._complained:
            self._log.warning("copy_waits", reason=obstacle)
        self._complained = obstacle

    def _attempt(self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool], joining: Joining) -> str | None:
        """Settle where every table starts, or return what is in the way. If nothing is, the edge counts as streaming from now on.

        Nothing is waited for while a lock is held, so edges cannot wait for each other.
        """
        settled = False
        try:
            if not joining.start_streaming(progress):
                return "another edge is about to record where this one goes on"
            obstacle = None
            if self._new(source, sink, progress):
                joining.release()
                if not joining.lock(progress):
                    return "another edge into the same target copies, or is about to"
                obstacle = self._decide(source, sink, progress, stopped, joining)
            obstacle = obstacle or joining.unsettled(progress) or lacks_rows(self._edge, source)
            settled = obstacle is None and joining.start_streaming(progress)
            return obstacle
        finally:
            joining.release(streaming=settled)

    def _decide(
        self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool], joining: Joining | None
    ) -> str | None:
        """Keep or copy each table that is new to the edge; return what is in the way of that, if something is."""
        new = self._new(source, sink, progress)
        wanted = [t for t in new if t.table in self._chosen or self._wants(t, sink, progress)]
        kept = [t for t in new if t not in wanted]
        if self.forgotten and (rows := [t.table for t in kept if not sink.is_empty(t.table)]):
            raise forgotten_rows(rows[0], self._edge, self._edge.target)
        self._keep(kept, sink, progress)
        if not wanted:
            return None
        if held := self._held():
            return held
        if joining is not None and (obstacle := joining.not_begun()):
            return obstacle
        with source.snapshot() as snapshot:
            if joining is not None:  # nobody need wait for what has no rows: all of its changes come with the stream
                empty = [t for t in wanted if snapshot.is_empty(t.table)]
                self._copy_deleted(snapshot, [t for t in empty if snapshot.has_deleted(t.table)], sink, progress, stopped)
                self._keep([t for t in empty if t.table not in progress.copied], sink, progress)
                wanted = [t for t in wanted if t.table not in progress.copied]
                self._chosen.update(t.table for t in wanted)
            starts = self._starts(snapshot, wanted, progress, joining)
            if isinstance(starts, str):
                return starts
            self.obstacle = None
            in_one = joining is not None or self._returns  # others have to know where they go on with the table as a whole
            try:
                progress.copied.update(self.jobs.run(snapshot, sink, starts, stopped, ranges=None if in_one else progress.ranges))
            except CopyAnew as anew:
                self.copy_again(anew.table, anew.reason)
                raise BrokenOff from anew
        return None

    def _copy_deleted(
        self, snapshot: Snapshot, tables: Sequence[CopyTable], sink: Sink, progress: Progress, stopped: Callable[[], bool]
    ) -> None:
        """Load what is known of deleted rows of tables that have no others; they start where the edge does."""
        everything = Settled({}, POSTGRES_EPOCH)
        for table in tables:
            versions = functools.partial(everything.unsettled, snapshot, table.table)
            start = Start(progress.position, snapshot.time, replace=False, seen=snapshot.time, versions=versions)
            self.jobs.run(snapshot, sink, {table: start}, stopped)
            progress.copied[table.table] = progress.position

    def _starts(
        self, snapshot: Snapshot, tables: Sequence[CopyTable], progress: Progress, joining: Joining | None
    ) -> dict[CopyTable, Start] | str:
        """Where everybody goes on after the copy of each table; or what is in the way."""
        held = snapshot.held(self._edge.sync) if joining is not None or self._returns else {}
        ours = held.get(self._edge.target)
        start = Start(snapshot.position, snapshot.time, seen=ours.time if ours else POSTGRES_EPOCH)
        others = joining.others(tables, held) if joining is not None else {}
        if isinstance(others, str):
            return others
        known = settled(self._edge.source, self._edge.target, self._others, held)

        def start_of(table: TableName) -> Start:
            versions = functools.partial(known.unsettled, snapshot, table)
            stay = self._policy != "always" and table not in progress.copied
            return dataclasses.replace(start, replace=not stay, others=others.get(table, {}), versions=versions)

        return {t: start_of(t.table) for t in tables}

    def _keep(self, tables: Sequence[CopyTable], sink: Sink, progress: Progress) -> None:
        for table in tables:
            self._log.info("table_kept", table=str(table.table), copy=self._policy)
            sink.keep(table.table, progress.position)
            progress.copied[table.table] = progress.position

    def _new(self, source: Source, sink: Sink, progress: Progress) -> list[CopyTable]:
        return self._read([t for t in source.tables() if not t.whole and self._joins(t, sink, progress)])

    def _read(self, tables: Sequence[CopyTable]) -> list[CopyTable]:
        """What is read of the tables."""
        return list(tables if self._shaped is None else map(self._shaped, tables))

    def _wants(self, table: CopyTable, sink: Sink, progress: Progress) -> bool:
        """Whether the table is copied: the policy says so, or it was copied whole until now."""
        if self._policy == "always" or table.table in progress.copied:
            return True
        return self._policy == "if-empty" and sink.is_empty(table.table)

    def _joins(self, table: CopyTable, sink: Sink, progress: Progress) -> bool:
        """Whether the table becomes a part of the edge now."""
        if progress.copied.get(table.table):
            if table.carried:
                return False
            if table.by_triggers:
                raise no_longer_captured(table.table, self._edge.source)
            raise no_longer_carried(table.table, progress.slot.slot)
        return self._is_there(table, sink, progress)

    def _is_there(self, table: CopyTable, sink: Sink, progress: Progress) -> bool:
        """Whether the table was there when the sync was set up; if not, the log says so."""
        made_since = bool(progress.copied) and not sink.has(table.table)
        if made_since or not table.carried:
            if table.table not in self._ignored:
                reason = "the sync selects it, but it was made after setup"
                remedy = "run: streamer setup, then restart streamer run"
                if table.by_triggers and not table.key:
                    reason = "it has no key by which triggers could tell its rows apart, and cannot be copied whole"
                    remedy = f"for the ways out run: streamer tables --sync {self._edge.sync}"
                self._log.warning("table_ignored", table=str(table.table), reason=reason, remedy=remedy)
            self._ignored.add(table.table)
            return False
        return True


def _pauses() -> Iterator[float]:
    """Seconds between attempts; not the same for any two edges, so that they don't meet again and again."""
    seconds = FIRST_PAUSE
    while True:
        yield seconds * random.uniform(0.5, 1.0)
        seconds = min(1.5 * seconds, LONGEST_PAUSE)


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (rest := deadline - time.monotonic()) > 0:
        if stopped():
            raise BrokenOff
        time.sleep(min(rest, 0.1))
