"""The queue between the reader and one writer: bounded in bytes, first in, first out.

The standard library's queue counts items; a piece may hold one row or a thousand. The writer takes everything that is waiting at
once (up to a size), because that is what it groups.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from streamer.model import Idle, Piece

_IDLE_SIZE = 100


class PieceQueue:
    """Holds pieces of up to `limit` bytes in all; whatever is put into an empty queue fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Piece | Idle] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes waiting."""
        return self._bytes

    def put(self, items: Sequence[Piece | Idle], timeout: float) -> bool:
        """Append the items, waiting up to `timeout` seconds for room; return whether there was. All of them or none."""
        size = sum(map(_size, items))
        with self._changed:
            if not self._changed.wait_for(lambda: not self._items or self._bytes + size <= self._limit, timeout):
                return False
            self._items.extend(items)
            self._bytes += size
            self._changed.notify_all()
            return True

    def take(self, limit: int, timeout: float) -> list[Piece | Idle]:
        """Remove and return what is waiting, up to `limit` bytes but at least one item; empty if `timeout` seconds bring
        nothing."""
        with self._changed:
            if not self._items:
                self._changed.wait(timeout)
            taken: list[Piece | Idle] = []
            size = 0
            while self._items and (not taken or size + _size(self._items[0]) <= limit):
                item = self._items.popleft()
                taken.append(item)
                size += _size(item)
            self._bytes -= size
            self._changed.notify_all()
            return taken

    def clear(self) -> None:
        """Let go of everything."""
        with self._changed:
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    def wake(self) -> None:
        """Make a waiting `take` return."""
        with self._changed:
            self._changed.notify_all()


def _size(item: Piece | Idle) -> int:
    return item.size if isinstance(item, Piece) else _IDLE_SIZE
