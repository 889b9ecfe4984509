"""Tables that are being copied: several at once, and several ranges of a large one, by threads of their own, each counted.

All threads take their work from one line, the largest table first. Where a table is cut is asked of the source when its turn comes,
range by range, so that nobody waits for the last cut before the first rows travel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias

import structlog

from streamer.copy_report import CopyReport, CopyTotals
from streamer.copy_work import Work, ranges_of, rows_of_a_range
from streamer.copytext import rows_in
from streamer.errors import ApplyError, ConnectError, SourceError, TargetError
from streamer.key_ranges import CopyAnew, consecutive, gaps
from streamer.model import LSN, CopiedRange, EdgeName, KeyRange, TableName
from streamer.ports import CopyTable, RangeLoader, Sink, Snapshot, Start
from streamer.workers import BrokenOff, Workers

RANGE_ROWS: Final = 500_000
"""Rows of a range. A smaller one would be sooner done again, but reading many takes longer than reading few."""
_OF_THE_SERVER: Final = ("08", "53", "57")
"""Classes of errors: connection, resources, and what somebody has broken off."""
TELL_SECONDS: Final = 30.0
"""How often the log tells how far a copy is."""

Ranges: TypeAlias = MutableMapping[TableName, tuple[CopiedRange, ...]]


class CopyJobs:
    """Copies tables of an edge, up to `jobs` at once; those with more than `range_rows` rows in ranges of so many."""

    def __init__(self, edge: EdgeName, jobs: int, range_rows: int = RANGE_ROWS) -> None:
        self.jobs = jobs
        self.range_rows = range_rows
        self.log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        #: the last attempt at each table, in the order of copying
        self._works: dict[TableName, Work] = {}
        self._waiting: Sequence[CopyTable] = ()
        #: since when the present copy runs, and how many rows had been copied before
        self._began, self._rows_before = time.monotonic(), 0
        self._told = 0.0
        #: whether tables are cut now
        self._cuts = False
        #: why rows were refused in copies from one snapshot
        self.refusals: set[str] = set()
        #: rows of attempts that are no longer listed
        self._earlier = 0

    @property
    def running(self) -> bool:
        """Whether rows are being copied now."""
        return any(work.active and not work.done for work in list(self._works.values()))

    @property
    def copied_rows(self) -> int:
        """Rows copied since the daemon started."""
        return self._earlier + sum(work.rows for work in list(self._works.values()))

    def totals(self) -> CopyTotals:
        """How far all tables are together, those too whose turn has not come."""
        works, waiting = list(self._works.values()), list(self._waiting)
        listed = [work.report() for work in works]
        counted = [report for work, report in zip(works, listed, strict=True) if work.active or work.done]
        rows = sum(one.rows for one in counted)
        total = sum(one.rows if one.done else max(one.total, one.rows) for one in listed) + sum(table.rows for table in waiting)
        seconds, sent = time.monotonic() - self._began, self.copied_rows - self._rows_before
        rate = sent / seconds if self.running and seconds > 0 else None
        return CopyTotals(
            tables=sum(one.done for one in counted),
            total_tables=len(listed) + len(waiting),
            rows=rows,
            total_rows=total,
            ranges=sum(one.ranges for one in counted),
            total_ranges=sum(one.total_ranges for one in listed) + sum(map(self._ranges_ahead, waiting)),
            bytes=sum(one.bytes for one in counted),
            total_bytes=sum(one.total_bytes for one in listed) + sum(table.size for table in waiting),
            rate=rate,
            remaining=(total - rows) / rate if rate else None,
        )

    def _ranges_ahead(self, table: CopyTable) -> int:
        return ranges_of(table, self.rows_of_a_range(table)) if self._cuts else 0

    def rows_of_a_range(self, table: CopyTable) -> int:
        """How many rows of a table a range has."""
        return rows_of_a_range(table, self.range_rows)

    def reports(self) -> list[CopyReport]:
        """How far each table is, in the order of copying."""
        works = [work for work in list(self._works.values()) if work.active or work.done]
        return [work.report() for work in works]

    def run(
        self,
        snapshot: Snapshot,
        sink: Sink,
        tables: Mapping[CopyTable, Start],
        stopped: Callable[[], bool],
        done: Callable[[CopyTable, int], None] = lambda table, rows: None,
        ranges: Ranges | None = None,
    ) -> Mapping[TableName, LSN]:
        """Copy the tables, the largest first, and tell `done` how many rows each had, in the thread that has copied its last.
        Return where changes of each begin.

        `ranges` are those that are there already, and then all those of tables that were cut; None: no table is cut.
        The first error ends all of them, and is raised: CopyAnew where rows of different times contradict each other. Raises
        BrokenOff if `stopped` says so.
        """
        self._waiting = waiting = deque(sorted(tables, key=lambda t: -t.rows))
        self._began = self._told = time.monotonic()
        self._rows_before = self.copied_rows
        self._cuts = ranges is not None and sink.ranges is not None
        attempt = _Attempt(self, snapshot, sink, lambda: self._begin(waiting, tables), ranges, stopped, done)
        try:
            attempt.workers.run(self.jobs if sink.parallel_loads else 1, "copy", self._tell_progress)
        finally:
            self._waiting = ()
            if sink.ranges is not None:
                sink.ranges.rest()
            for work in list(self._works.values()):
                work.active = False
        return attempt.positions

    def _tell_progress(self) -> None:
        """Log how far the copy is, now and then."""
        if time.monotonic() - self._told < TELL_SECONDS:
            return
        self._told = time.monotonic()
        totals = self.totals()
        self.log.info(
            "copy_progress",
            tables=", ".join(one.table for one in self.reports() if not one.done),
            rows=totals.rows,
            of_rows=totals.total_rows,
            bytes=totals.bytes,
            of_bytes=totals.total_bytes,
            ranges=totals.ranges,
            of_ranges=totals.total_ranges,
            rate=round(totals.rate or 0.0),
            left=None if totals.remaining is None else round(totals.remaining),
        )

    def _begin(self, waiting: deque[CopyTable], starts: Mapping[CopyTable, Start]) -> Work | None:
        """Take the next table from the line."""
        if not waiting:
            return None
        table = waiting.popleft()
        if (earlier := self._works.pop(table.table, None)) is not None:
            self._earlier += earlier.rows
        self._works[table.table] = work = Work(table, starts[table], self.rows_of_a_range(table))
        return work


class _Attempt:
    """The work of some threads at the tables that `begin` gives."""

    def __init__(
        self,
        jobs: CopyJobs,
        snapshot: Snapshot,
        sink: Sink,
        begin: Callable[[], Work | None],
        ranges: Ranges | None,
        stopped: Callable[[], bool],
        done: Callable[[CopyTable, int], None],
    ) -> None:
        self._jobs = jobs
        self._snapshot = snapshot
        self._sink = sink
        self._begin = begin
        self._ranges = ranges
        self._done = done
        self._line = threading.Lock()
        #: tables of which parts are left, the largest first
        self._open: list[Work] = []
        #: where changes of each table begin that was copied
        self.positions: dict[TableName, LSN] = {}
        self.workers = Workers(self._next, stopped)

    def _next(self) -> Callable[[], None] | None:
        """Return what is to be done next: one thread a table while there are enough of them, because rows that several insert side
        by side into one index cost more."""
        with self._line:
            while (work := self._chosen()) is not None:
                for part in work.parts:
                    if not (work.before or work.open or work.ranges):
                        self._jobs.log.info("copy_started", table=str(work.table.table), rows=work.table.rows)
                    work.open[part] = 0
                    return partial(self._copy, work, part)
                work.cut = True
                self._open.remove(work)
                if not work.open:
                    return partial(self._finish, work)
        return None

    def _chosen(self) -> Work | None:
        idle = next((work for work in self._open if not work.open), None)
        if idle is None and (idle := self._begin()) is not None:
            idle.parts = self._parts(idle)
            self._open.append(idle)
        return idle or (self._open[0] if self._open else None)

    # -- one table ---------------------------------------------------------------------------------------------------------------

    def _parts(self, work: Work) -> Iterator[KeyRange | None]:
        """Give what is to be copied of a table; None: all of it, in one transaction."""
        table, loader = work.table, self._sink.ranges
        if self._ranges is None or loader is None or table.ranged is None or not loader.takes(table):
            yield None
            return
        work.before = self._resumed(work, table.ranged, loader)
        missing = gaps(table.ranged, work.before)
        parts = (part for gap in missing for part in self._cut(table, gap))
        if not work.before:
            first = next(parts)
            if (first.whole and table.table not in self._ranges) or not loader.begin(table, work.start):
                yield None
                return
            yield first
        yield from parts

    def _resumed(self, work: Work, ranged: KeyRange, loader: RangeLoader) -> tuple[CopiedRange, ...]:
        """The ranges that need not be copied again."""
        name, before = work.table.table, (self._ranges or {}).get(work.table.table, ())
        if not before:
            return ()
        if any(one.range.column != ranged.column or one.range.numeric != ranged.numeric for one in before):
            reason = "its key is another one since"
        elif not loader.resumes(work.table):
            reason = "more than its key is unique, and rows that contradict those of another time would go into quarantine"
        else:
            self._jobs.log.info("copy_resumed", table=str(name), ranges=len(before), rows=sum(one.rows for one in before))
            return before
        self._jobs.log.info("copy_restarted", table=str(name), reason=reason)
        return ()

    def _cut(self, table: CopyTable, gap: KeyRange) -> Iterator[KeyRange]:
        rows = self._jobs.rows_of_a_range(table)
        if gap.whole and 0 < table.rows <= rows:
            return iter([gap])
        return consecutive(gap, lambda rest: self._snapshot.first_range(table, rest, rows))

    def _copy(self, work: Work, part: KeyRange | None) -> None:
        table, start = work.table, replace(work.start, within=part)
        try:
            with self._snapshot.rows(table.table, table.columns, table.where, part) as blocks:
                rows = self._sink.load(table, start, self._counted(work, part, blocks))
        except BaseException as error:
            del work.open[part]
            if isinstance(error, ApplyError):
                if work.before and error.message not in self._jobs.refusals:
                    raise CopyAnew(table.table, error.message) from error
                self._jobs.refusals.add(error.message)
            if (named := _named(error, table.table)) is not None:
                raise named from error
            raise
        with self._line:
            del work.open[part]
            work.copied += rows
            if part is not None:
                work.ranges.append(CopiedRange(part, start.position, rows))
            last = work.cut and not work.open
        if last:
            self._finish(work)

    def _counted(self, work: Work, part: KeyRange | None, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if self.workers.broken_off:
                raise BrokenOff
            yield block
            work.open[part] += rows_in(block)
            work.bytes += len(block)

    def _finish(self, work: Work) -> None:
        """All parts are copied: what is to be known of the table from now on."""
        table, ranges = work.table, (*work.before, *work.ranges)
        position = max((one.position for one in ranges), default=work.start.position)
        if ranges and self._sink.ranges is not None and self._ranges is not None:
            self._sink.ranges.finish(table, position, work.rows_there)
            self._ranges[table.table] = ranges
        self.positions[table.table] = position
        work.done, work.ended = True, time.monotonic()
        self._jobs.log.info("copy_done", table=str(table.table), rows=work.rows_there)
        self._done(table, work.rows_there)


def _named(error: BaseException, table: TableName) -> BaseException | None:
    """The error with the name of the table; None if it has that already, or is about the connection or the server as a whole."""
    if not isinstance(error, ConnectError | SourceError | TargetError) or str(table) in error.message:
        return None
    answer = getattr(error.__cause__, "sqlstate", None)  # of a server of PostgreSQL's: others tell TargetError where they refuse
    if isinstance(error, ConnectError) and (answer is None or answer[:2] in _OF_THE_SERVER):
        return None
    return type(error)(f'copy of table "{table}": {error.message}', error.hint)
