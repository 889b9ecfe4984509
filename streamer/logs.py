"""Log records: one event word, then fields. For people on a terminal, as JSON lines elsewhere; always on standard error.

The trap: standard error is often a file on a disk that can be full. Replication must not fail because of its log, so a record that
cannot be written is counted, and the next one that can be says how many were lost.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Final, TextIO, cast

import structlog

from streamer.errors import StreamerError, TakenError


class _CurrentStderr:
    """Whatever standard error is at the moment: while progress bars are shown, lines must go around them."""

    def __init__(self) -> None:
        self.lost = 0
        self.untold = 0
        self._line = ""

    def write(self, text: str) -> int:
        self._line += text
        return len(text)

    def flush(self) -> None:
        """Write the record that is whole now; structlog lets one thread at a time do so."""
        line, self._line = self._line, ""
        try:
            with terminal:
                sys.stderr.write(line)
                sys.stderr.flush()
        except (OSError, ValueError):  # no space left, a reader that has gone, or closed
            self.lost += 1
            self.untold += 1
        else:
            self.untold = 0


terminal: Final = threading.RLock()
"""Held by whoever writes to standard error, where that is a terminal with progress bars."""
_stderr = _CurrentStderr()


def lost_records() -> int:
    """Return how many records could not be written since the process began."""
    return _stderr.lost


def _tell_lost(logger: object, method: str, record: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**record, "records_lost": _stderr.untold} if _stderr.untold else record


def failure(log: structlog.typing.FilteringBoundLogger, part: str, error: StreamerError) -> None:
    """Record that a part (a stream, an edge) has failed, or stands by because another daemon does its work."""
    if isinstance(error, TakenError):
        log.warning(f"{part}_standby", reason=error.message, remedy=error.hint)
    else:
        log.error(f"{part}_failed", error=error.message, remedy=error.hint, permanent=error.permanent)


def configure() -> None:
    """Set up logging for this process."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of reaches us as an exception as well
    terminal = sys.stderr.isatty()
    # plain_traceback: the pretty one shows local variables, and among them passwords
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: structlog.typing.Processor = console if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _tell_lost,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _stderr)),
    )
