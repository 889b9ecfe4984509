"""What an edge tells of writing that does not go as it should: rows that were missing on the target or refused by it, in its log,
now and then only; and a target that does not answer, in its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from streamer.model import LSN, EdgeName
from streamer.ports import Written
from streamer.report import Problem

COMPLAIN_SECONDS: Final = 10.0
"""How often at most the log tells of the same thing."""
BLOCKED_SECONDS: Final = 30.0
"""How long a target may be at work on one group; most take milliseconds."""


def blocked(edge: EdgeName, seconds: float, now: datetime) -> Problem | None:
    """Return the problem of a target that is at work on one group for so long; None if that is not long."""
    if seconds < BLOCKED_SECONDS:
        return None
    told = f'node "{edge.target}" is at work on one group of changes for {seconds:.0f} s: it is blocked there, or a very large one'
    return Problem(
        told,
        f'see what the session "streamer {edge}" waits for there: pg_stat_activity and pg_blocking_pids, or SHOW PROCESSLIST',
        now,
    )


class Complaints:
    """Tells of what sinks have written."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:  # noqa: ANN401  # structlog's are untyped
        self._log = log
        self._clock = clock
        self._missing_at = self._refused_at = float("-inf")
        #: of these the log has not told yet: changes that were put into quarantine, and the first one that was refused
        self._quarantined = 0
        self._refusal = ""

    def look(self, done: Sequence[Written], missing: int, position: LSN | None) -> None:
        """Tell of what was `done`, if it is time; `missing` is how many rows were not there since the daemon started."""
        now = self._clock()
        if any(written.missing for written in done) and now >= self._missing_at + COMPLAIN_SECONDS:
            self._missing_at = now
            self._log.warning("rows_missing", rows=missing, position=str(position))
        if voided := sum(written.voided for written in done):
            self._log.info("quarantine_emptied", changes=voided, position=str(position))
        self._quarantined += sum(written.quarantined for written in done)
        self._refusal = self._refusal or next((written.refusal for written in done if written.refusal), "")
        if self._refusal and now >= self._refused_at + COMPLAIN_SECONDS:
            self._refused_at = now
            self._log.warning("changes_quarantined", changes=self._quarantined, first=self._refusal, position=str(position))
            self._quarantined, self._refusal = 0, ""
