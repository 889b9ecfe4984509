"""Connections that threads have one after the other, as for the ranges of an initial copy.

A new one costs both ends together 15 ms of CPU time, as much as some thousand copied rows.

The trap: who has one when all is over gives it back later; it is closed then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamer.session import Connection


class SpareConnections:
    """Makes a connection with `make` where none is to spare. For several threads."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._spare: list[Connection] = []
        self._ended = False
        self._lock = threading.Lock()

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """Give a connection, outside of a transaction, and keep it for the next one; after an error it is closed. Raises what
        making one raises."""
        with self._lock:
            connection = self._spare.pop() if self._spare else None
        connection = connection or self._make()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._ended:
                self._spare.append(connection)
                return
        connection.close()

    def close_spare(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            spare, self._spare = self._spare, []
        for connection in spare:
            connection.close()

    def close(self) -> None:
        """Close those that nobody uses, and every other one when it comes back."""
        self._ended = True
        self.close_spare()
