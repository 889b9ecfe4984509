"""All streams of a config in one process: this file alone puts the parts together.

Each stream has a reader thread, in which its runner begins the runs (runner.py), and a writer thread an edge (edge.py). The main
thread waits for the end: a signal, or, with `once`, the streams themselves.
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
from datetime import UTC, datetime
from functools import cache, partial
from types import FrameType
from typing import Final

from streamer.capture.assemble import Interest
from streamer.capture.row_filter import ServerFilter
from streamer.capture.shaped_tables import require_shapes
from streamer.capture.slot import SlotSource
from streamer.config import Config, Sync, slot_name
from streamer.copying import InitialCopy
from streamer.edge import Edge
from streamer.errors import UnknownSyncError, UsageError
from streamer.model import EdgeName, TableName
from streamer.ports import Sink
from streamer.report import State, StreamReport
from streamer.router import Route
from streamer.runner import Runner
from streamer.schedule import Continuous, Resting
from streamer.sinks import handlers
from streamer.sinks.conflict import Rules
from streamer.sinks.jsonl import JsonlSink
from streamer.sinks.mysql import MysqlSink
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_transactions import MultiMaster
from streamer.sinks.shaped import ShapedSink, Shapes, load_functions
from streamer.sinks.sqlite import SqliteSink
from streamer.sinks.unrepresentable import Replacements
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
        #: when it was made: the numbers of kicks are its own
        self.started = datetime.now(UTC)
        self._runners = {} if once else {(name, node): make_runner(config, name, node) for name, node in chosen}
        once_streams = [stream_maker(config, name, node, once=True)() for name, node in chosen] if once else []
        self._streams: Sequence[Stream | Runner] = once_streams or list(self._runners.values())
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

    def kick(self, sync: str) -> dict[str, int]:
        """Ask for all that is committed by now on the sources of a sync; return the number of the kick for each source.

        Raises UnknownSyncError; UsageError if the sync is paused; ConnectError and SourceError if it is continuous and a source
        does not answer.
        """
        return {source: runner.kick() for source, runner in self._runners_of(sync).items()}

    def pause(self, sync: str) -> None:
        """Stop the streams of a sync until `resume`, or until the daemon ends. Raises UnknownSyncError."""
        for runner in self._runners_of(sync).values():
            runner.pause()

    def resume(self, sync: str) -> None:
        """Let the streams of a sync go on. Raises UnknownSyncError."""
        for runner in self._runners_of(sync).values():
            runner.resume()

    def _runners_of(self, sync: str) -> dict[str, Runner]:
        found = {source: runner for (name, source), runner in self._runners.items() if name == sync}
        if not found:
            syncs = ", ".join(dict.fromkeys(name for name, _ in self._runners))
            raise UnknownSyncError(f'the running daemon has no sync "{sync}"', f"it has {syncs}")
        return found


def _tune_interpreter() -> None:
    """Set what Python does on its own to what this process needs; both halve the time that a stream takes.

    Every change is a tuple that the cyclic collector would walk again and again while it waits in a queue, though rows never form
    cycles; so it runs seldom.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


def stream_maker(config: Config, sync: str, node: str, *, once: bool) -> Callable[[], Stream]:
    """Return what makes the stream of a sync from one of its sources, with an edge for each target: a new one for every run.

    What a run learns of source and copies outlives it. Raises ConfigError if a function of the user's is missing.
    """
    settings = config.syncs[sync]
    heard = frozenset(name for name, other in config.syncs.items() if overlap(settings, other))
    edges = [EdgeName(sync, node, target) for target in config.targets(sync, node)]
    routes = {edge: Route(node, edge.target, config.feeders(sync, edge.target)) for edge in edges}
    interest = Interest(settings.selects, heard, lambda transaction: any(r.accepts(transaction) for r in routes.values()))
    source = SlotSource(node, config.nodes[node], sync, slot_name(sync, node), interest)
    masters = _masters(settings) if settings.multi_master else None
    shapes = {edge: _shapes(config, edge) for edge in edges}
    copies = {
        edge: InitialCopy(
            edge,
            settings.copy_rows,
            settings.copy_jobs,
            config.feeders(sync, edge.target),
            returns=edge.target in settings.sources,
            shaped=None if (of := shapes[edge]) is None else of.read,
        )
        for edge in edges
    }

    def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
        return [Edge(e, source, partial(_shaped_sink, config, e, masters, shapes[e]), routes[e], copies[e], rejoin) for e in edges]

    return partial(Stream, sync, node, source, make_edges, until_caught_up=once or not settings.continuous, one_try=once)


def make_runner(config: Config, sync: str, node: str) -> Runner:
    """Return what runs the stream of a sync from one of its sources when the config says."""
    settings = config.syncs[sync]
    schedule = Continuous() if settings.continuous else Resting(settings.interval, time.monotonic())
    return Runner(sync, node, stream_maker(config, sync, node, once=False), schedule, settings.run)


def make_sink(config: Config, edge: EdgeName, masters: MultiMaster | None = None) -> Sink:
    """Return the writer of an edge, by the kind of its target."""
    node = config.nodes[edge.target]
    if node.kind == "jsonl":
        return JsonlSink.of_node(edge, node)
    if node.kind == "mysql":
        return MysqlSink(edge, node.mysql, node.schemas, _replacements(config, edge))
    if node.kind == "sqlite":
        return SqliteSink(edge, node.path, replacements=_replacements(config, edge))
    return PostgresSink(edge, node.url, masters)


def _shaped_sink(config: Config, edge: EdgeName, masters: MultiMaster | None, shapes: Shapes | None) -> Sink:
    sink = make_sink(config, edge, masters)
    return sink if shapes is None else ShapedSink(sink, shapes)


def _shapes(config: Config, edge: EdgeName) -> Shapes | None:
    """What tables become on the target; None if they stay as they are. Raises ConfigError if a function is missing."""
    sync, url = config.syncs[edge.sync], config.nodes[edge.source].url
    shapes = sync.shapes_for(edge.target)
    if not shapes:
        return None
    examine = partial(require_shapes, edge.source, url, sync.selects, shapes)
    return Shapes(shapes, load_functions(shapes.values()), examine, ServerFilter(edge.source, url))


def _replacements(config: Config, edge: EdgeName) -> Replacements:
    """What the edge does with values that its target cannot hold; the sink knows tables by what they are called there."""
    sync = config.syncs[edge.sync]
    sources = {shape.target: table for table, shape in sync.shapes_for(edge.target).items()}
    return Replacements(edge, lambda table: sync.unrepresentable_for(sources.get(table, table)))


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
