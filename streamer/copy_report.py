"""How far initial copies are: plain values, for `status`, metrics, the log and progress bars.

Rows are counted as they are sent, ranges when they are committed. What it all comes to is estimated from the source's statistics
and from what was sent so far, and known only when all is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CopyReport:
    """One table of a running initial copy."""

    table: str
    #: that the target has
    rows: int
    #: estimated, 0 if unknown
    total: int
    done: bool
    #: ranges that the target has; 0 if the table is copied as a whole
    ranges: int = 0
    #: that this attempt has sent, as text of COPY
    bytes: int = 0
    #: rows a second, since this attempt began
    rate: float = 0.0
    #: seconds that the rest will take at this rate; None if that cannot be told
    remaining: float | None = None
    #: estimate of what `ranges` comes to
    total_ranges: int = 0
    #: estimate of what `bytes` comes to
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CopyTotals:
    """All initial copies of an edge since the daemon started, together."""

    #: that are whole, of those that are copied
    tables: int = 0
    total_tables: int = 0
    #: that the target has, and an estimate of what that comes to
    rows: int = 0
    total_rows: int = 0
    #: ranges that the target has, and an estimate of what that comes to; tables that are copied as a whole have none
    ranges: int = 0
    total_ranges: int = 0
    #: that were sent, as text of COPY, and an estimate of what that comes to
    bytes: int = 0
    total_bytes: int = 0
    #: rows a second, since the present copy began; None if none is under way
    rate: float | None = None
    #: seconds that the rest will take at this rate; None if that cannot be told
    remaining: float | None = None


NOTHING_COPIED: Final = CopyTotals()
