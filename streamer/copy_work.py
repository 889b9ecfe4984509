"""One table that is being copied, or was: what is left of it, and how far it is.

The trap: several threads change it, and others look; so each field is replaced or grown in one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from streamer.copy_report import CopyReport
from streamer.model import CopiedRange, KeyRange
from streamer.ports import CopyTable, Start

RANGE_BYTES: Final = 256 << 20
"""What a range takes on the source's disk at most, about."""


@dataclass(slots=True, eq=False)
class Work:
    """A table that is being copied, or was."""

    table: CopyTable
    start: Start
    #: how many rows a range has
    range_rows: int
    #: what is still to be copied; None: all of it at once
    parts: Iterator[KeyRange | None] = field(default_factory=lambda: iter(()))
    #: rows that were sent of the parts that are being copied now
    open: dict[KeyRange | None, int] = field(default_factory=dict)
    #: no more parts will come
    cut: bool = False
    done: bool = False
    #: somebody works at it, or will
    active: bool = True
    #: rows of parts that are copied; bytes that were sent, since when, and until when
    copied: int = 0
    bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    #: what was copied by earlier attempts, and what is by this one
    before: tuple[CopiedRange, ...] = ()
    ranges: list[CopiedRange] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows this attempt has sent."""
        return self.copied + sum(list(self.open.values()))

    @property
    def rows_there(self) -> int:
        """How many rows the target has, or is about to have."""
        return self.rows + sum(one.rows for one in self.before)

    def report(self) -> CopyReport:
        """Return how far it is."""
        seconds = (self.ended or time.monotonic()) - self.began
        sent, there, total = self.rows, self.rows_there, self.table.rows
        left = 0 if self.done else max(0, total - there)
        rate = sent / seconds if seconds > 0 else 0.0
        return CopyReport(
            str(self.table.table),
            there,
            total,
            self.done,
            len(self.before) + len(self.ranges),
            self.bytes,
            rate,
            left / rate if rate and left else None,
            self._ranges_in_the_end(),
            self.bytes + round(left * (self.bytes / sent if sent else self.table.size / max(1, total))),
        )

    def _ranges_in_the_end(self) -> int:
        """An estimate of how many ranges there will be; 0 for a table that is copied as a whole."""
        finished = [*self.before, *self.ranges]
        under_way = sum(part is not None for part in list(self.open))
        if self.cut or None in self.open:
            return len(finished) + under_way
        if not finished and not under_way:
            return ranges_of(self.table, self.range_rows)
        rows = sum(one.rows for one in finished)
        each = rows / len(finished) if rows else self.range_rows
        return len(finished) + max(under_way, math.ceil((self.table.rows - rows) / each))


def rows_of_a_range(table: CopyTable, wanted: int) -> int:
    """How many rows of a table a range has that is to have so many, but not too many bytes."""
    return max(1, min(wanted, RANGE_BYTES * table.rows // table.size)) if table.rows and table.size else wanted


def ranges_of(table: CopyTable, rows: int) -> int:
    """An estimate of how many ranges of so many rows a table is cut into; 0 if it is not."""
    return math.ceil(table.rows / rows) if table.ranged is not None and table.rows > rows else 0
