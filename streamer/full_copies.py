"""Tables that are copied whole, again and again: when it is time for that, and what came of it.

In a sync that rests between its runs it is time in every run; one that runs all the time begins with it, and then every so often.
An edge leaves the stream for that, copies them where it copies tables that are new, and comes back; the others are not held up. The
trap: an edge that fails begins again, but what it has copied by then need not be copied twice.

docs/tables-without-keys.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from streamer.ports import CopyTable
from streamer.report import FullCopyReport


class FullCopies:
    """The full copies of one edge; `every` is the time from one to the next in seconds, None if they come once a run."""

    def __init__(self, every: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._tables: tuple[str, ...] = ()
        #: when each was copied, by the clock
        self._at: dict[str, float] = {}
        self._reports: dict[str, FullCopyReport] = {}

    def begin_run(self) -> None:
        """A run of the stream begins."""
        if self._every is None:
            self._at.clear()

    def wanted(self, tables: Sequence[CopyTable]) -> list[CopyTable]:
        """Return those of the edge's `tables` that are to be copied now."""
        self._tables = tuple(str(t.table) for t in tables)
        return [t for t in tables if self._is_due(str(t.table))]

    @property
    def due(self) -> bool:
        """Whether there are tables to be copied."""
        return any(map(self._is_due, self._tables))

    def _is_due(self, table: str) -> bool:
        at = self._at.get(table)
        return at is None or (self._every is not None and self._clock() >= at + self._every)

    def note(self, table: CopyTable, rows: int) -> None:
        """A table was copied."""
        name = str(table.table)
        self._at[name] = self._clock()
        self._reports[name] = FullCopyReport(name, rows, datetime.now(UTC))

    def end_round(self) -> None:
        """All were copied; they come together the next time too."""
        self._at = dict.fromkeys(self._tables, self._clock())

    def reports(self) -> list[FullCopyReport]:
        """The last copy of each table."""
        return [self._reports[name] for name in self._tables if name in self._reports]
