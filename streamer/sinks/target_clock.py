"""The target's own clock, and waiting until it has passed the commit time of a transaction from elsewhere.

Without that a node could show a change from the future: an edit that answers it would carry an earlier time, and lose against it
everywhere but here. So what is applied is always in the target's past, however wrong the clocks are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from streamer.errors import TargetError
from streamer.model import EdgeName, Origin
from streamer.session import Connection

LOOK_SECONDS: Final = 0.2
"""How long to sleep at most before asking for the time again."""


class TargetClock:
    """Knows a moment that the target's clock has passed. `limit` is how far a commit time may lie ahead of it, in seconds."""

    def __init__(self, edge: EdgeName, connection: Connection, limit: float) -> None:
        self._edge = edge
        self._connection = connection
        self._limit = timedelta(seconds=limit)
        self._told: datetime | None = None
        self._told_at = 0.0
        #: how far the last commit time that came lay ahead of the target's clock, in seconds
        self.skew = 0.0
        self._waited = 0.0

    def saw(self, text: str) -> None:
        """The target has just told its time."""
        self._told, self._told_at = datetime.fromisoformat(text), time.monotonic()

    def has_passed(self, moment: datetime) -> bool:
        """Whether the clock is certainly past the moment, as far as we know without asking."""
        return self._told is not None and moment < self._told + timedelta(seconds=time.monotonic() - self._told_at)

    def wait_for(self, origin: Origin, interrupted: Callable[[], bool]) -> bool:
        """Return once the target's clock is strictly past the commit time; False if interrupted before that.

        Raises TargetError if the commit time lies further ahead than the limit.
        """
        if self.has_passed(origin.commit_time):
            self.skew = 0.0
            return True
        now = self._ask()
        self.skew = max(0.0, (origin.commit_time - now).total_seconds())
        while now <= origin.commit_time:
            if origin.commit_time - now > self._limit:
                raise self._too_far(origin, now)
            if interrupted():
                return False
            began = time.monotonic()
            time.sleep(min((origin.commit_time - now).total_seconds() + 0.0001, LOOK_SECONDS))
            now = self._ask()
            self._waited += time.monotonic() - began
        return True

    def take_waited(self) -> float:
        """Return the seconds that were waited since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _ask(self) -> datetime:
        (text,) = self._connection.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
        self.saw(text)
        return datetime.fromisoformat(text)

    def _too_far(self, origin: Origin, now: datetime) -> TargetError:
        ahead = (origin.commit_time - now).total_seconds()
        return TargetError(
            f'edge {self._edge}: a transaction that "{origin.node}" committed at {origin.commit_time:%Y-%m-%d %H:%M:%S.%f} lies '
            f'{ahead:.1f} s in the future of "{self._edge.target}", whose clock is at {now:%Y-%m-%d %H:%M:%S.%f} (UTC); '
            f"max_clock_skew allows {self._limit.total_seconds():g} s",
            f'set both clocks right, for example with chrony; where they are again, it is applied once "{self._edge.target}" has '
            "passed that time, and no sooner with another max_clock_skew",
        )
