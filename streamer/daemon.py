"""All streams of a config in one process: this file alone puts the parts together.

Each stream has a reader thread (here) and a writer thread an edge (edge.py). The main thread waits for the end: a signal, or, with
`once`, the streams themselves.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import Final

from streamer.capture.assemble import Interest
from streamer.capture.slot import SlotSource
from streamer.config import Config, Sync, slot_name
from streamer.copying import InitialCopy
from streamer.edge import Edge
from streamer.errors import UsageError
from streamer.model import EdgeName, TableName
from streamer.ports import Sink
from streamer.report import State, StreamReport
from streamer.router import Route
from streamer.sinks import handlers
from streamer.sinks.conflict import Rules
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_transactions import MultiMaster
from streamer.sinks.sqlite import SqliteSink
from streamer.stream import Stream
from streamer.topology import overlap

POLL_SECONDS: Final = 0.2
"""How often the main thread looks whether it was told to stop."""
LEAVE_SECONDS: Final = 9.0
"""After which the process ends even if a stream does not, because a node does not answer; the next run takes up from there."""
SWITCH_SECONDS: Final = 0.0005
"""How long a busy thread may keep the others waiting. A writer gives up the GIL with every round trip, and with Python's 5 ms it
would wait that long to get it back from a reader that decodes a large transaction."""


class Daemon:
    """Runs the streams of `config`, or the share of them that `sync` and `source` name. With `once`, until caught up."""

    def __init__(self, config: Config, *, sync: str | None = None, source: str | None = None, once: bool = False) -> None:
        chosen = [
            (name, node)
            for name, settings in config.syncs.items()
            for node in settings.sources
            if sync in (None, name) and source in (None, node)
        ]
        if not chosen:
            raise UsageError(
                f"no stream of the config has sync {sync or '(any)'} and source {source or '(any)'}", "see: streamer tables"
            )
        self._streams = [make_stream(config, name, node, once=once) for name, node in chosen]
        self._once = once
        self._stopping = False
        self._leave_at = math.inf
        self._threads = [threading.Thread(target=s.run, name=f"stream {s.name}", daemon=True) for s in self._streams]

    def run(self) -> bool:
        """Stream until stopped, or with `once` until nothing is left to do. Return whether all went well.

        A stream that has failed for good stays, so that `status` and metrics show it.
        """
        _tune_interpreter()
        for thread in self._threads:
            thread.start()
        while not self._once and not self._stopping:
            time.sleep(POLL_SECONDS)  # not an Event: the signal that sets it may find the main thread inside its lock
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < self._leave_at:
                thread.join(timeout=POLL_SECONDS)
        return not any(stream.state is State.FAILED or stream.problem for stream in self.report())

    def stop(self) -> None:
        """Ask all streams to finish the group in hand, confirm, and end."""
        self._stopping = True
        self._leave_at = time.monotonic() + LEAVE_SECONDS
        for stream in self._streams:
            stream.stop()

    def report(self) -> list[StreamReport]:
        """Return what every stream is doing now."""
        return [stream.report() for stream in self._streams]


def _tune_interpreter() -> None:
    """Set what Python does on its own to what this process needs; both halve the time that a stream takes.

    Every change is a tuple that the cyclic collector would walk again and again while it waits in a queue, though rows never form
    cycles; so it runs seldom.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


def make_stream(config: Config, sync: str, node: str, *, once: bool) -> Stream:
    """Return the stream of a sync from one of its sources, with an edge for each target."""
    settings = config.syncs[sync]
    heard = frozenset(name for name, other in config.syncs.items() if overlap(settings, other))
    routes = {target: Route(node, target, config.feeders(sync, target)) for target in config.targets(sync, node)}
    interest = Interest(settings.selects, heard, lambda transaction: any(r.accepts(transaction) for r in routes.values()))
    source = SlotSource(node, config.nodes[node], sync, slot_name(sync, node), interest)
    masters = _masters(settings) if settings.multi_master else None

    def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
        return [
            Edge(
                edge := EdgeName(sync, node, target),
                source,
                partial(make_sink, config, edge, masters),
                route,
                InitialCopy(
                    edge,
                    settings.copy_rows,
                    settings.copy_jobs,
                    config.feeders(sync, target),
                    returns=target in settings.sources,
                ),
                rejoin,
            )
            for target, route in routes.items()
        ]

    return Stream(sync, node, source, make_edges, until_caught_up=once)


def make_sink(config: Config, edge: EdgeName, masters: MultiMaster | None = None) -> Sink:
    """Return the writer of an edge, by the kind of its target."""
    node = config.nodes[edge.target]
    return SqliteSink(edge, node.path) if node.kind == "sqlite" else PostgresSink(edge, node.url, masters)


def _masters(sync: Sync) -> MultiMaster:
    """What a writer must know where several sources write. Raises ConfigError if a function that resolves conflicts is missing."""

    def rules(table: TableName) -> Rules:
        own = sync.rules_for(table)
        return Rules(own.conflict, own.delta, own.max, own.min, sync.conflict_fallback)

    policies = {sync.conflict, *(table.conflict for table in sync.table.values())}
    by_time = "latest" in policies or sync.conflict_fallback == "latest"
    handler = cache(partial(handlers.load, timeout=sync.conflict_timeout))
    for policy in policies:
        if isinstance(policy, str) and policy.startswith("python:"):
            handler(policy)  # a function that is not there is an error now, not at the first conflict
    return MultiMaster(rules, handler, sync.max_clock_skew, sync.conflict_days, sync.tombstone_days, by_time)


@contextmanager
def stopping_on_signals(daemon: Daemon) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the daemon while the context lasts; a second signal ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        daemon.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
