"""The queue between the reader and one writer: bounded in bytes, first in, first out.

The standard library's queue counts items; a piece may hold one row or a thousand. The writer takes everything that is waiting
at once (up to a size), because that is what it groups, and has it in hand until it says that it is done. The trap: a group
costs the same milliseconds whatever its size, so a writer that takes what it finds in a backlog keeps the reader from its work,
finds less, and becomes slower still. Where much is waiting it therefore lets more come; where little is, it goes at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import Final

from streamer.model import Idle, Piece

MUCH: Final = 64 << 10
"""Bytes waiting from which on more is expected: hundreds of rows, which no writer leaves behind that keeps up."""
BREATH_SECONDS: Final = 0.005
"""How long nothing more must have come."""
GATHER_SECONDS: Final = 0.1
"""How long it may go on coming."""

_IDLE_SIZE: Final = 100


class PieceQueue:
    """Holds pieces of up to `limit` bytes in all; whatever is put into an empty queue fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Piece | Idle] = deque()
        self._bytes = 0
        #: bytes for which the writer is to be woken
        self._wanted = 0
        #: what the writer has taken and is not done with, and since when
        self._in_hand: Sequence[Piece | Idle] = ()
        self._taken_at = 0.0
        #: when the first was committed of what was let go of, and must come again
        self._left: datetime | None = None
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes waiting."""
        return self._bytes

    @property
    def empty(self) -> bool:
        """Whether nothing waits, and nothing is in hand."""
        return not self._items and not self._in_hand

    @property
    def oldest(self) -> datetime | None:
        """When the first transaction was committed that waits, is in hand, or was let go of and has not come again; else None."""
        with self._changed:
            return _first_commit(chain(self._in_hand, self._items)) or self._left

    @property
    def held_seconds(self) -> float:
        """How long the writer has been at work on what it has in hand."""
        with self._changed:
            return time.monotonic() - self._taken_at if self._in_hand else 0.0

    def put(self, items: Sequence[Piece | Idle], timeout: float) -> bool:
        """Append the items, waiting up to `timeout` seconds for room; return whether there was. All of them or none."""
        size = sum(map(_size, items))
        with self._changed:
            if not self._changed.wait_for(lambda: not self._items or self._bytes + size <= self._limit, timeout):
                return False
            self._items.extend(items)
            self._bytes += size
            if self._bytes >= self._wanted:
                self._changed.notify_all()
            return True

    def take(self, limit: int, timeout: float) -> list[Piece | Idle]:
        """Remove and return what is waiting, up to `limit` bytes but at least one item; empty if `timeout` seconds bring
        nothing."""
        with self._changed:
            if not self._items:
                self._changed.wait(timeout)
            self._gather(limit)
            taken: list[Piece | Idle] = []
            size = 0
            while self._items and (not taken or size + _size(self._items[0]) <= limit):
                item = self._items.popleft()
                taken.append(item)
                size += _size(item)
            self._bytes -= size
            self._left = None if taken else self._left
            self._in_hand, self._taken_at = taken, time.monotonic()
            self._changed.notify_all()
            return taken

    def done(self) -> None:
        """What was in hand is written."""
        with self._changed:
            self._in_hand = ()

    def _gather(self, limit: int) -> None:
        """Where much is waiting, let it become more, without being woken for every bit: the reader would have to wait for it."""
        seen, until = 0, time.monotonic() + GATHER_SECONDS
        self._wanted = limit
        while MUCH <= self._bytes < limit and self._bytes > seen and time.monotonic() < until:
            seen = self._bytes
            self._changed.wait(BREATH_SECONDS)
        self._wanted = 0

    def clear(self) -> None:
        """Let go of everything that waits."""
        with self._changed:
            self._left = _first_commit(self._items) or self._left
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    def drop(self) -> None:
        """What was in hand is not written, and must come again."""
        with self._changed:
            self._left, self._in_hand = _first_commit(self._in_hand) or self._left, ()

    def wake(self) -> None:
        """Make a waiting `take` return."""
        with self._changed:
            self._changed.notify_all()


def _first_commit(items: Iterable[Piece | Idle]) -> datetime | None:
    return next((item.transaction.origin.commit_time for item in items if isinstance(item, Piece)), None)


def _size(item: Piece | Idle) -> int:
    return item.size if isinstance(item, Piece) else _IDLE_SIZE
