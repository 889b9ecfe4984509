"""Which position may be confirmed to the source. Pure.

The one rule: the source may forget only what every edge of the stream holds durably, and what is confirmed never goes back.
An edge whose progress is not known yet (its target is away since we started) holds everything back.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamer.model import LSN


class Confirmation:
    """What has been confirmed to a stream's source so far."""

    def __init__(self, position: LSN) -> None:
        self._position = position

    def advance(self, durable: Iterable[LSN | None]) -> LSN:
        """Return the position to confirm, given what each edge holds durably; None is an edge that we know nothing of."""
        lowest: LSN | None = None
        for position in durable:
            if position is None:
                return self._position
            lowest = position if lowest is None else min(lowest, position)
        if lowest is not None and lowest > self._position:
            self._position = lowest
        return self._position
