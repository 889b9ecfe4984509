"""Signals that end a command, as exceptions, so that it takes back what it has done; and none of them while it does.

SIGHUP is one of them: a terminal, or the connection to it, that is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interruptible() -> AbstractContextManager[None]:
    """Whatever wants to end us raises KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _handled(interrupt)


def undisturbed() -> AbstractContextManager[None]:
    """Nothing but SIGKILL ends us now."""
    return _handled(signal.SIG_IGN)


@contextmanager
def _handled(by: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Have those signals handled so that are not ignored anyway, as SIGHUP is below nohup. Other threads get none."""
    ours = _SIGNALS if current_thread() is main_thread() else ()
    heeded = [number for number in ours if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, by) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
