"""Threads that take work from one line until nothing is left: the tables of a copy, the indexes after it.

The trap: a thread that waits for a lock on the target must not keep the process alive; so they are daemons, unlike an executor's,
and who was told to stop does not wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamer.errors import StreamerError


class BrokenOff(StreamerError):
    """We were told to stop, or another part of the work has failed."""

    def __init__(self) -> None:
        super().__init__("the copy was broken off", "it begins again with the next run")


class Workers:
    """Threads that do what `following` gives, until it gives None, one of them fails, or `stopped` says so."""

    def __init__(self, following: Callable[[], Callable[[], None] | None], stopped: Callable[[], bool]) -> None:
        self._following = following
        self._stopped = stopped
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    @property
    def broken_off(self) -> bool:
        """Whether what is being done is in vain."""
        return bool(self._errors) or self._stopped()

    def run(self, count: int, name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Have `count` threads at work, called by `name` and a number; call `meanwhile` now and then.

        Raises the first error of any; BrokenOff, at once, when stopped: threads may still be at work then.
        """
        self._threads = [threading.Thread(target=self._work, name=f"{name} {n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive() and not self._stopped():
                thread.join(timeout=0.2)
                meanwhile()
        if self._errors:
            raise self._errors[0]
        if self._stopped():
            raise BrokenOff

    def join(self, seconds: float) -> None:
        """Wait for each thread that is still at work, up to `seconds`."""
        for thread in self._threads:
            thread.join(seconds)

    def _work(self) -> None:
        try:
            while not self.broken_off and (todo := self._following()) is not None:
                todo()
        except BaseException as error:
            self._errors.append(error)
