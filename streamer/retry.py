"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Seconds to wait before the next try: doubling from 0.2 to 30, with jitter so that many don't come back at once."""

    FIRST = 0.2
    LAST = 30.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def wait(self) -> float:
        """Return how long to wait now."""
        seconds, self._next = self._next, min(self._next * 2, self.LAST)
        return seconds * random.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next = self.FIRST
