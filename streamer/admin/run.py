"""`streamer run`: the daemon, with its HTTP server, signals, and progress bars of an initial copy on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from streamer import http_server, logs
from streamer.admin import copy_bars
from streamer.config import Config
from streamer.daemon import Daemon, heeding_signals
from streamer.errors import StreamerError
from streamer.report import Problem, StreamReport


def run(
    config: Config, *, sync: str | None, source: str | None, once: bool, load: Callable[[], Config] | None = None
) -> list[StreamerError]:
    """Stream until stopped, or with `once` until caught up; return what went wrong and was not cured. SIGHUP has `load` read the
    config again. Raises UsageError."""
    logs.configure()
    daemon = Daemon(config, sync=sync, source=source, once=once, load=load)
    serving = nullcontext() if once else http_server.serving(config.http.address, daemon, config.http.token)
    with serving, heeding_signals(daemon, reloads=not once), copy_bars.shown(daemon.report):
        daemon.run()
    return [StreamerError(p.message, p.hint) for p in problems(daemon.report())]


def problems(streams: Sequence[StreamReport]) -> Iterator[Problem]:
    """Yield every problem of the streams and their edges, the same only once."""
    found = [p for stream in streams for p in (stream.problem, *(edge.problem for edge in stream.edges)) if p]
    seen: set[str] = set()
    for problem in found:
        if problem.message not in seen:
            seen.add(problem.message)
            yield problem
