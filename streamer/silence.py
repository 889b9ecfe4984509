"""Ends waits for a server from which nothing comes any more, though its connection is open.

To TCP a network that holds on to a connection without passing anything on is no reason to end it, nor is a frozen server, and the
drivers wait for ever. So every wait for an answer is noted; one that lasts is looked into over another connection: is the server at
work for that session, as it may be for hours (a lock, an index)? Only if it is not, or if nobody answers there either, the first
connection is broken off, and whoever waits gets an error, as from any lost connection.

The trap: an answer may come while we look. So it is looked twice, and both times it must be the same wait.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

SILENT_SECONDS: Final = 60.0
"""How long an answer may take before it is looked into, and then between two looks: as wal_receiver_timeout of a standby."""
LOOK_SECONDS: Final = 1.0
"""How often waits are looked at, and how long the second look comes after the first."""
ANSWER_SECONDS: Final = 10.0
"""How long the server may take to say what the session does."""


class Wait(ABC):
    """The waiting of one connection; it is used by one thread at a time."""

    def __init__(self) -> None:
        #: since when an answer is waited for
        self._since = math.inf
        self._looked_at = -math.inf
        self._lock = threading.Lock()
        #: whether the connection was broken off
        self.given_up = False
        _watch(self)

    @abstractmethod
    def is_lost(self) -> bool:
        """Ask over another connection whether the server is not at work for us, or gives no answer at all. Never raises."""

    @abstractmethod
    def break_off(self) -> None:
        """Make the wait fail."""

    @abstractmethod
    def end_there(self) -> None:
        """Have the server end the session, which keeps its locks from the next one. Never raises."""

    def begin(self) -> None:
        """An answer is waited for from now on; nothing if it is already."""
        if self._since == math.inf:
            self._since = time.monotonic()

    def end(self) -> None:
        """Something has come, or we wait no longer."""
        with self._lock:  # whoever breaks off must not find another socket under the number of a closed one
            self._since = math.inf

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Wait inside the context."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    @property
    def reason(self) -> str:
        """Why the connection was broken off, for people."""
        return f"no answer for {SILENT_SECONDS:g} s, the connection was given up"

    def is_long(self, now: float) -> bool:
        """Whether it is time to look into it."""
        return now - max(self._since, self._looked_at) > SILENT_SECONDS

    def look(self) -> None:
        """Break off a wait that is in vain."""
        since, self._looked_at = self._since, time.monotonic()
        if self.is_lost():
            time.sleep(LOOK_SECONDS)
            if self._since == since and self.is_lost():
                self._give_up(since)

    def _give_up(self, since: float) -> None:
        with self._lock:
            if self._since != since:
                return
            self.given_up = True
            self.break_off()
        self.end_there()


_waits: WeakSet[Wait] = WeakSet()
_starting = threading.Lock()
_thread: threading.Thread | None = None


def _watch(wait: Wait) -> None:
    """Have an eye on the connection as long as it is there."""
    global _thread
    with _starting:
        _waits.add(wait)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="silence", daemon=True)
            _thread.start()


def _run() -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        with _starting:
            long = [wait for wait in _waits if wait.is_long(now)]
        for wait in long:  # each in a thread of its own: one server that is silent must not keep the others from being asked
            wait._looked_at = now
            threading.Thread(target=wait.look, name="silence", daemon=True).start()
