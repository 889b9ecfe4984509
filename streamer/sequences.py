"""The sequences of one edge: when they are looked at, and what came of it.

They are no part of the stream: how far a sequence is stands in no change. So the target's are brought to the source's or farther
every few seconds, when somebody kicks the sync, and when a run ends. A sequence that cannot be written is a problem of the edge
that is shown; rows go on.

docs/sequences.md
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from streamer.errors import StreamerError
from streamer.model import EdgeName
from streamer.report import Problem, SequencesReport
from streamer.sequence_ports import SequenceSource, SequenceTarget

EVERY_SECONDS: Final = 10.0
"""How long sequences may be behind while their edge is streaming."""
AFTER_FAILURE_SECONDS: Final = 30.0
"""How long to leave them alone if that fails, because it may keep the rows waiting."""


class SequenceKeeper:
    """Keeps the sequences of an edge at or ahead of the source's; with no ends there is nothing to do."""

    def __init__(
        self,
        edge: EdgeName,
        source: SequenceSource | None = None,
        target: SequenceTarget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ends = None if source is None or target is None else (source, target)
        self._clock = clock
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self._due = 0.0
        #: how often somebody has asked for it, and how many of these questions are answered
        self._asked = self._answered = 0
        self._number = self._moved = 0
        self._at: datetime | None = None
        self._problem: Problem | None = None

    def hurry(self) -> None:
        """Ask for it now; may be called by any thread."""
        self._asked += self._ends is not None

    @property
    def pending(self) -> bool:
        """Whether somebody has asked, and it is not done yet."""
        return self._answered < self._asked

    def keep(self, *, at_once: bool = False) -> None:
        """Do it if it is time, or `at_once`. Failures are kept for `report`."""
        if self._ends is None or not (at_once or self.pending or self._clock() >= self._due):
            return
        asked = self._asked
        try:
            self._carry(*self._ends)
        except StreamerError as error:
            self._failed(error)
        self._answered = asked

    def _carry(self, source: SequenceSource, target: SequenceTarget) -> None:
        states = source.read()
        moved = target.advance(states)
        self._number, self._at, self._problem = len(states), datetime.now(UTC), None
        self._moved += moved
        self._due = self._clock() + EVERY_SECONDS
        if moved:
            self._log.info("sequences_moved", sequences=moved)

    def _failed(self, error: StreamerError) -> None:
        first = self._problem is None or self._problem.message != error.message
        self._problem = Problem.of(error, datetime.now(UTC))
        self._due = self._clock() + AFTER_FAILURE_SECONDS
        self.close()
        if first:
            self._log.warning("sequences_failed", error=error.message, remedy=error.hint)

    def close(self) -> None:
        """Disconnect until the next time."""
        for end in self._ends or ():
            end.close()

    def report(self) -> SequencesReport | None:
        """Return how it stands; None if there is nothing to do."""
        return SequencesReport(self._number, self._moved, self._at, self._problem) if self._ends else None
