"""The beginning of an edge: is its progress still about this slot, and which tables must be copied first.

Every table is copied in one target transaction together with the record of it, so that a broken copy leaves nothing and is simply
made again. A copied table starts at its snapshot's position, one that was kept at the slot's: until the edge has passed the
highest of them, changes of a table that its rows hold already are left out (`Edge` does that).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import structlog

from streamer.errors import SlotError, StreamerError, no_longer_carried, start_over
from streamer.model import LSN, EdgeName, SlotIdentity
from streamer.ports import CopyTable, Progress, Sink, SlotState, Snapshot, Source
from streamer.report import CopyReport

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
    """Copies the tables of one edge that need it, several at once; `reports` tells how far it is."""

    def __init__(self, edge: EdgeName, policy: Policy, jobs: int) -> None:
        self._policy = policy
        self._jobs = jobs
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self._running: dict[CopyTable, int] = {}
        self._done: dict[CopyTable, int] = {}

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
        joined = progress.copied
        new = [t for t in source.tables() if self._joins(t, sink, progress)]
        kept = [t for t in new if not self._wants(t, sink)]
        for table in kept:
            sink.keep(table.table, progress.position)
            joined[table.table] = progress.position
        if wanted := [t for t in new if t not in kept]:
            with source.snapshot() as snapshot:
                self._copy(snapshot, sink, wanted, stopped)
                joined.update({t.table: snapshot.position for t in wanted})

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
            self._log.warning(
                "table_ignored",
                table=str(table.table),
                reason="the sync selects it, but it was made after setup",
                remedy="run: streamer setup, then restart streamer run",
            )
            return False
        return True

    def _copy(self, snapshot: Snapshot, sink: Sink, tables: Sequence[CopyTable], stopped: Callable[[], bool]) -> None:
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
                    self._copy_table(snapshot, sink, waiting.popleft(), broken_off)
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
            raise _BrokenOff

    def _copy_table(self, snapshot: Snapshot, sink: Sink, table: CopyTable, broken_off: Callable[[], bool]) -> None:
        self._running[table] = 0
        self._log.info("copy_started", table=str(table.table), rows=table.rows)
        try:
            with snapshot.rows(table.table, table.columns) as blocks:
                self._done[table] = sink.load(table, snapshot.position, self._counted(table, blocks, broken_off))
            self._log.info("copy_done", table=str(table.table), rows=self._done[table])
        finally:
            self._running.pop(table)

    def _counted(self, table: CopyTable, blocks: Iterator[bytes], broken_off: Callable[[], bool]) -> Iterator[bytes]:
        for block in blocks:
            if broken_off():
                raise _BrokenOff
            yield block
            self._running[table] += block.count(b"\n")


class _BrokenOff(StreamerError):
    """We were told to stop, or another table's copy has failed."""

    def __init__(self) -> None:
        super().__init__("the initial copy was broken off", "it begins again with the next run")
