"""The beginning of an edge: is its progress still about this slot, and which tables must be copied first.

Every table is copied in one target transaction together with the record of it, so that a broken copy leaves nothing and is simply
made again. A copied table starts at its snapshot's position, one that was kept at the slot's: until the edge has passed the
highest of them, changes of a table that its rows hold already are left out (`Edge` does that).

Where several sources feed the target, the copy of one holds what it had applied of the others, so it records where their edges go
on as well. They decide one after another, and none streams before that is settled (joining.py).
"""

from __future__ import annotations

import dataclasses
import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import structlog

from streamer.errors import SlotError, StreamerError, no_longer_carried, start_over
from streamer.joining import Joining, Settled, settled
from streamer.model import LSN, POSTGRES_EPOCH, EdgeName, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, Sink, SlotState, Snapshot, Source, Start
from streamer.report import CopyReport

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
    progress = sink.open()
    try:
        state = source.state()
    except SlotError as error:
        if progress is None:  # nothing has been replicated yet, so nothing is lost
            raise SlotError(error.message, "run: streamer setup") from None
        raise
    if progress is None:
        sink.begin(state.identity, state.confirmed)
        progress = Progress(state.identity, state.confirmed, {})
    verify(edge, progress.slot, progress.position, state)
    copy.run(source, sink, progress, stopped)
    return progress


def verify(edge: EdgeName, ours: SlotIdentity, position: LSN, state: SlotState) -> None:
    """Refuse to skip over changes that nobody can read any more: raise SlotError unless the slot is `ours`, with all from
    `position` on."""
    way_on = start_over(edge.sync)
    theirs = state.identity
    if theirs.system_identifier != ours.system_identifier:
        raise SlotError(
            f'edge {edge}: the progress on "{edge.target}" belongs to cluster {ours.system_identifier}, '
            f'node "{edge.source}" is cluster {theirs.system_identifier}',
            f"correct nodes.{edge.source}.url; or, {way_on}",
        )
    if theirs != ours:
        raise SlotError(
            f'edge {edge}: the progress on "{edge.target}" belongs to slot "{ours.slot}" of database "{ours.database}", '
            f'not to "{theirs.slot}" of "{theirs.database}"',
            f"correct nodes.{edge.source}.url; or, {way_on}",
        )
    if state.exact and state.confirmed > position:
        raise SlotError(
            f'slot "{theirs.slot}" on "{edge.source}" starts at {state.confirmed}, but "{edge.target}" holds only what was '
            f"committed before {position}: the slot was created anew or advanced, and the changes between are lost",
            way_on,
        )
    if state.current < position:
        raise SlotError(
            f'the WAL of "{edge.source}" ends at {state.current}, but "{edge.target}" holds what was committed before '
            f"{position}: the source was restored from a backup",
            way_on,
        )


class InitialCopy:
    """Copies the tables of one edge that need it, several at once; `reports` tells how far it is.

    `feeders` are all sources that feed the target, `returns` tells whether the target is a source of the sync itself, and `shaped`
    which columns and rows of a table are read. Raises what that raises.
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
    ) -> None:
        self._edge = edge
        self._policy = policy
        self._jobs = jobs
        self._others = tuple(feeder for feeder in feeders if feeder != edge.source)
        self._returns = returns
        self._shaped = shaped
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self._running: dict[CopyTable, int] = {}
        self._done: dict[CopyTable, int] = {}
        self._ignored: set[TableName] = set()
        #: tables that were empty when we first looked: what comes in meanwhile does not make them ones to keep
        self._chosen: set[TableName] = set()
        #: what the copy waits for, if it does
        self.obstacle: str | None = None
        self._complained = ""

    @property
    def running(self) -> bool:
        """Whether rows are being copied now."""
        return bool(self._running)

    @property
    def copied_rows(self) -> int:
        """Rows copied since the daemon started."""
        return sum(self._done.values()) + sum(self._running.values())

    def reports(self) -> list[CopyReport]:
        """How far each table is, in the order of copying."""
        done, running = dict(self._done), dict(self._running)
        return [CopyReport(str(t.table), n, t.rows, done=True) for t, n in done.items()] + [
            CopyReport(str(t.table), n, t.rows, done=False) for t, n in running.items() if t not in done
        ]

    def run(self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool]) -> None:
        """Copy what needs it, and note in `progress` where every table of the edge starts.

        Raises SourceError if a table was carried once and is no longer; otherwise what the ends raise.
        """
        if not self._others:
            self._decide(source, sink, progress, stopped, None)
            return
        joining = Joining(self._edge, self._others, sink)
        try:
            for attempt, pause in enumerate(_pauses()):
                self.obstacle = self._attempt(source, sink, progress, stopped, joining)
                if self.obstacle is None:
                    return
                if attempt >= SHORT_WAITS:
                    self._complain(self.obstacle)
                _sleep(pause, stopped)
        finally:
            self.obstacle = None

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
            obstacle = obstacle or joining.unsettled(progress)
            settled = obstacle is None and joining.start_streaming(progress)
            return obstacle
        finally:
            joining.release(streaming=settled)

    def _decide(
        self, source: Source, sink: Sink, progress: Progress, stopped: Callable[[], bool], joining: Joining | None
    ) -> str | None:
        """Keep or copy each table that is new to the edge; return what is in the way of that, if something is."""
        new = self._new(source, sink, progress)
        wanted = [t for t in new if t.table in self._chosen or self._wants(t, sink)]
        self._keep([t for t in new if t not in wanted], sink, progress)
        if not wanted:
            return None
        if joining is not None and (obstacle := joining.not_begun()):
            return obstacle
        with source.snapshot() as snapshot:
            if joining is not None:  # nobody need wait for what has no rows: all of its changes come with the stream
                empty = [t for t in wanted if snapshot.is_empty(t.table)]
                self._copy_deleted(snapshot, [t for t in empty if snapshot.has_deleted(t.table)], sink, progress, stopped)
                self._keep([t for t in empty if t.table not in progress.copied], sink, progress)
                wanted = [t for t in wanted if t.table not in progress.copied]
                self._chosen.update(t.table for t in wanted)
            starts = self._starts(snapshot, wanted, joining)
            if isinstance(starts, str):
                return starts
            self.obstacle = None
            self._copy(snapshot, sink, starts, stopped)
            progress.copied.update({t.table: snapshot.position for t in wanted})
        return None

    def _copy_deleted(
        self, snapshot: Snapshot, tables: Sequence[CopyTable], sink: Sink, progress: Progress, stopped: Callable[[], bool]
    ) -> None:
        """Load what is known of deleted rows of tables that have no others; they start where the edge does."""
        everything = Settled({}, POSTGRES_EPOCH)
        for table in tables:
            versions = functools.partial(everything.unsettled, snapshot, table.table)
            start = Start(progress.position, snapshot.time, replace=False, seen=snapshot.time, versions=versions)
            self._copy(snapshot, sink, {table: start}, stopped)
            progress.copied[table.table] = progress.position

    def _starts(self, snapshot: Snapshot, tables: Sequence[CopyTable], joining: Joining | None) -> dict[CopyTable, Start] | str:
        """Where everybody goes on after the copy of each table; or what is in the way."""
        held = snapshot.held(self._edge.sync) if joining is not None or self._returns else {}
        ours = held.get(self._edge.target)
        start = Start(
            snapshot.position, snapshot.time, replace=self._policy == "always", seen=ours.time if ours else POSTGRES_EPOCH
        )
        others = joining.others(tables, held) if joining is not None else {}
        if isinstance(others, str):
            return others
        known = settled(self._edge.source, self._edge.target, self._others, held)

        def start_of(table: TableName) -> Start:
            versions = functools.partial(known.unsettled, snapshot, table)
            return dataclasses.replace(start, others=others.get(table, {}), versions=versions)

        return {t: start_of(t.table) for t in tables}

    def _keep(self, tables: Sequence[CopyTable], sink: Sink, progress: Progress) -> None:
        for table in tables:
            self._log.info("table_kept", table=str(table.table), copy=self._policy)
            sink.keep(table.table, progress.position)
            progress.copied[table.table] = progress.position

    def _new(self, source: Source, sink: Sink, progress: Progress) -> list[CopyTable]:
        new = [t for t in source.tables() if self._joins(t, sink, progress)]
        return new if self._shaped is None else list(map(self._shaped, new))

    def _wants(self, table: CopyTable, sink: Sink) -> bool:
        """Whether the policy has the table copied."""
        return self._policy == "always" or (self._policy == "if-empty" and sink.is_empty(table.table))

    def _joins(self, table: CopyTable, sink: Sink, progress: Progress) -> bool:
        """Whether the table becomes a part of the edge now."""
        if table.table in progress.copied:
            if table.carried:
                return False
            raise no_longer_carried(table.table, progress.slot.slot)
        made_since = bool(progress.copied) and not sink.has(table.table)
        if made_since or not table.carried:
            if table.table not in self._ignored:
                self._log.warning(
                    "table_ignored",
                    table=str(table.table),
                    reason="the sync selects it, but it was made after setup",
                    remedy="run: streamer setup, then restart streamer run",
                )
            self._ignored.add(table.table)
            return False
        return True

    def _copy(self, snapshot: Snapshot, sink: Sink, tables: Mapping[CopyTable, Start], stopped: Callable[[], bool]) -> None:
        """Copy the tables, the largest first, by several threads; the first error ends all of them.

        The threads are daemons, unlike an executor's: one that waits for a lock on the target must not keep the process alive.
        """
        waiting = deque(sorted(tables, key=lambda t: -t.rows))
        errors: list[BaseException] = []

        def broken_off() -> bool:
            return bool(errors) or stopped()

        def work() -> None:
            try:
                while waiting and not broken_off():
                    table = waiting.popleft()
                    self._copy_table(snapshot, sink, table, tables[table], broken_off)
            except BaseException as error:
                errors.append(error)

        workers = min(self._jobs if sink.parallel_loads else 1, len(tables))
        threads = [threading.Thread(target=work, name=f"copy {n}", daemon=True) for n in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not stopped():
                thread.join(timeout=0.2)
        if errors:
            raise errors[0]
        if stopped():
            raise BrokenOff

    def _copy_table(self, snapshot: Snapshot, sink: Sink, table: CopyTable, start: Start, broken_off: Callable[[], bool]) -> None:
        self._running[table] = 0
        self._log.info("copy_started", table=str(table.table), rows=table.rows)
        try:
            with snapshot.rows(table.table, table.columns, table.where) as blocks:
                self._done[table] = sink.load(table, start, self._counted(table, blocks, broken_off))
            self._log.info("copy_done", table=str(table.table), rows=self._done[table])
        finally:
            self._running.pop(table)

    def _counted(self, table: CopyTable, blocks: Iterator[bytes], broken_off: Callable[[], bool]) -> Iterator[bytes]:
        for block in blocks:
            if broken_off():
                raise BrokenOff
            yield block
            self._running[table] += block.count(b"\n")


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


class BrokenOff(StreamerError):
    """We were told to stop, or another table's copy has failed."""

    def __init__(self) -> None:
        super().__init__("the initial copy was broken off", "it begins again with the next run")
