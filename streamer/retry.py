"""How long to wait before trying again: by the kind of error, with jitter so that many don't come back at once."""

from __future__ import annotations

import random

from streamer.errors import StreamerError, TakenError


class Backoff:
    """Seconds to wait before the next try: doubling from 0.2 to 30. A standby looks every second or so, to take over soon."""

    FIRST = 0.2
    LAST = 30.0
    STANDBY = 1.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def after(self, error: StreamerError) -> float:
        """Return how long to wait after this error."""
        if isinstance(error, TakenError):
            seconds = self.STANDBY
        else:
            seconds, self._next = self._next, min(self._next * 2, self.LAST)
        return seconds * random.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next = self.FIRST
