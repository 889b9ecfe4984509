"""All streams of a config in one process; what they are made of is put together in assembly.py.

Each stream has a reader thread, in which its runner begins the runs (runner.py), and a writer thread an edge (edge.py); each source
has one that looks at its slots and deltas (slot_monitor.py). The main thread waits for the end: a signal, or, with `once`, the
streams themselves. On the way it takes another config, if it is asked to, and tells the service manager that we live.

The trap: a config is taken as a whole or not at all. So whatever it makes new is made before anything that runs is stopped.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Final, TypeAlias

import structlog

from streamer import FORM, __version__
from streamer.assembly import node_monitor, stream_maker
from streamer.config import Config, slot_name
from streamer.errors import StreamerError, UnknownSyncError, UsageError
from streamer.model import EdgeName, TableName
from streamer.report import NodeReport, ProofReport, State, StreamReport
from streamer.runner import Runner
from streamer.schedule import Continuous, Resting
from streamer.service_manager import ServiceManager
from streamer.slot_monitor import NodeMonitor, stop_all
from streamer.stream import Stream
from streamer.topology import overlap
from streamer.verify.continuous import Provers
from streamer.verify.proofs import of_body

POLL_SECONDS: Final = 0.2
"""How often the main thread looks whether it was told to stop."""
LEAVE_SECONDS: Final = 9.0
"""After which the process ends even if a stream does not, because a node does not answer; the next run takes up from there."""
SWITCH_SECONDS: Final = 0.0005
"""How long a busy thread may keep the others waiting. A writer gives up the GIL with every round trip, and with Python's 5 ms it
would wait that long to get it back from a reader that decodes a large transaction."""

Name: TypeAlias = tuple[str, str]
"""A stream: its sync and its source."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A stream in its thread, and all of the config that it was made by."""

    stream: Stream | Runner
    thread: threading.Thread
    settings: object


class Daemon:
    """Runs the streams of `config`, or the share of them that `sync` and `source` name. With `once`, until caught up. `load` reads
    the config again."""

    def __init__(
        self,
        config: Config,
        *,
        sync: str | None = None,
        source: str | None = None,
        once: bool = False,
        load: Callable[[], Config] | None = None,
    ) -> None:
        #: when it was made: the numbers of kicks are its own
        self.started = datetime.now(UTC)
        self._share = (sync, source)
        self._once = once
        self._load = load
        self._config = config
        self._members = {name: self._member(config, name) for name in self._chosen(config)}
        self._monitors: Mapping[str, tuple[NodeMonitor, object]] = {}
        self._reload_asked = False
        self._stopping = False
        self._leave_at = math.inf
        self._manager = ServiceManager()
        self._provers = Provers(self.kick, self._unproven)
        self._log = structlog.get_logger()

    def _chosen(self, config: Config) -> list[Name]:
        """The streams that we run of a config. Raises UsageError if there are none."""
        sync, source = self._share
        streams = [(name, node) for name, settings in config.syncs.items() for node in settings.sources]
        chosen = [(name, node) for name, node in streams if sync in (None, name) and source in (None, node)]
        if not chosen:
            raise UsageError(
                f"no stream of the config has sync {sync or '(any)'} and source {source or '(any)'}", "see: streamer tables"
            )
        return chosen

    def _member(self, config: Config, name: Name) -> _Member:
        stream = stream_maker(config, *name, once=True)() if self._once else self._runner(config, name)
        thread = threading.Thread(target=stream.run, name=f"stream {stream.name}", daemon=True)
        return _Member(stream, thread, _settings(config, name))

    def _runner(self, config: Config, name: Name) -> Runner:
        settings = config.syncs[name[0]]
        schedule = Continuous() if settings.continuous else Resting(settings.interval, time.monotonic())
        held = partial(self._obstacle, name)
        make = stream_maker(config, *name, once=False, held=held, hasten=partial(self._hasten_others, name))
        return Runner(*name, make, schedule, settings.run, held=held)

    # -- the main thread ---------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Stream until stopped, or with `once` until nothing is left to do. Return whether all went well.

        A stream that has failed for good stays, so that `status` and metrics show it.
        """
        _tune_interpreter()
        self._log.info("daemon_started", version=__version__, form=FORM)
        for member in self._members.values():
            member.thread.start()
        if not self._once:
            self._monitor()
            self._prove()
            self._manager.ready(self._told)
        while not self._once and not self._stopping:
            time.sleep(POLL_SECONDS)  # not an Event: the signal that sets it may find the main thread inside its lock
            if self._reload_asked:
                self._reload_asked = False
                self._reload()
            if self._manager.expects_life() and self._lives():
                self._manager.alive()
        self._manager.stopping()
        self._provers.stop()
        self._join(self._members.values())
        stop_all([monitor for monitor, _ in self._monitors.values()])
        return not any(stream.state is State.FAILED or stream.problem for stream in self.report())

    @property
    def _told(self) -> str:
        return f"runs {len(self._members)} stream{'' if len(self._members) == 1 else 's'}"

    def _lives(self) -> bool:
        """Whether every stream has its thread, and answers when it is asked how it is."""
        self.report()
        return all(member.thread.is_alive() for member in self._members.values())

    def _join(self, members: Iterable[_Member], deadline: float = math.inf) -> None:
        for member in members:
            while member.thread.is_alive() and time.monotonic() < min(deadline, self._leave_at):
                member.thread.join(timeout=POLL_SECONDS)

    def stop(self) -> None:
        """Ask all streams to finish the group in hand, confirm, and end."""
        self._stopping = True
        self._leave_at = time.monotonic() + LEAVE_SECONDS
        for member in self._members.values():
            member.stream.stop()

    # -- another config ----------------------------------------------------------------------------------------------------------

    def ask_reload(self) -> None:
        """Let the main thread read the config again; a signal may call this."""
        self._reload_asked = True

    def _reload(self) -> None:
        self._manager.reloading()
        try:
            if self._load is not None:
                self._take(self._load())
        except StreamerError as error:
            self._log.error("config_refused", error=error.message, remedy=error.hint, kept="the config as it was")
        finally:
            self._manager.ready(self._told)

    def _take(self, config: Config) -> None:
        """Run what this config says; what it says as before is not interrupted, unless it has failed. Raises StreamerError."""
        if config.http != self._config.http:
            raise UsageError("[http] cannot change while streamer runs", "restart it, or put the old values back")
        chosen = self._chosen(config)
        before = self._members
        kept = {
            name: member
            for name, member in before.items()
            if name in chosen and member.settings == _settings(config, name) and member.stream.report().state is not State.FAILED
        }
        fresh = {name: self._member(config, name) for name in chosen if name not in kept}
        gone = {name: member for name, member in before.items() if name not in kept}
        self._replace(gone, fresh)
        self._config, self._members = config, {name: (kept | fresh)[name] for name in chosen}
        self._monitor()
        for member in fresh.values():
            member.thread.start()
        self._prove()
        if self._stopping:  # the signal came while we were here, and has not met the new ones
            self.stop()
        self._tell(added=fresh.keys() - gone.keys(), begun_anew=fresh.keys() & gone.keys(), removed=gone.keys() - fresh.keys())

    def _replace(self, gone: Mapping[Name, _Member], fresh: Mapping[Name, _Member]) -> None:
        """Stop what goes; what takes its place is paused if it was."""
        for name, member in gone.items():
            if name in fresh and member.stream.report().paused:
                self._pause(fresh[name])
            member.stream.stop()
        self._join(gone.values(), time.monotonic() + LEAVE_SECONDS)

    def _pause(self, member: _Member) -> None:
        if isinstance(member.stream, Runner):
            member.stream.pause()

    def _tell(self, **names: Iterable[Name]) -> None:
        told = {what: sorted(f"{sync}: {source}" for sync, source in streams) for what, streams in names.items()}
        self._log.info("config_reloaded", **told)
        for sync, source in sorted(names["removed"]):
            slot = slot_name(sync, source)
            self._log.warning(
                "slot_left",
                slot=slot,
                node=source,
                reason="its stream was taken out of the config; the slot goes on to keep WAL, a delta reader captured changes",
                remedy=f"streamer slots drop {source} {slot}; for a delta reader run streamer check, which tells what to do",
            )

    # -- the slots and deltas of the sources ---------------------------------------------------------------------------------------

    def _monitor(self) -> None:
        """Look at all sources of our streams from now on."""
        before, monitors = self._monitors, dict[str, tuple[NodeMonitor, object]]()
        for node in dict.fromkeys(source for _, source in self._members):
            syncs = {name: sync for name, sync in self._config.syncs.items() if node in sync.sources}
            settings = (self._config.nodes[node], syncs)
            if node in before and before[node][1] == settings:
                monitors[node] = before[node]
            else:
                monitors[node] = (node_monitor(node, *settings, self._give_up), settings)
                monitors[node][0].start()
        self._monitors = monitors
        stop_all([monitor for node, (monitor, _) in before.items() if monitors.get(node, (None,))[0] is not monitor])

    def _give_up(self, sync: str, source: str, error: StreamerError) -> None:
        member = self._members.get((sync, source))
        if member is not None and isinstance(member.stream, Runner):
            member.stream.give_up(error)

    def _obstacle(self, name: Name) -> str:
        """Why no run or initial copy of a stream may begin now; empty if it may."""
        monitor = self._monitors.get(name[1])
        return monitor[0].obstacle(*name) if monitor else ""

    def _hasten_others(self, name: Name) -> None:
        """Have the streams of a sync from its other sources note how far they are: of one that is quiet nobody could tell."""
        for other, member in self._members.items():
            if other[0] == name[0] and other != name and isinstance(member.stream, Runner):
                member.stream.hasten()

    # -- rows compared all the time ------------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Compare the rows of the syncs that want it, as far as we run the stream from their first source."""
        syncs = self._config.syncs
        self._provers.take(self._config, {n: m.settings for (n, node), m in self._members.items() if node == syncs[n].sources[0]})

    def _unproven(self, edge: EdgeName) -> str:
        """Why the rows of an edge cannot be compared now; empty if they can."""
        member = self._members.get((edge.sync, edge.source))
        states = [e.state for e in member.stream.report().edges if e.target == edge.target] if member else []
        return "" if states == [State.STREAMING] else f"the edge is {states[0].value}" if states else "the edge does not run"

    # -- what others ask ---------------------------------------------------------------------------------------------------------

    def report(self) -> list[StreamReport]:
        """Return what every stream is doing now."""
        proofs = self._provers.reports()
        return [_with_proofs(member.stream.report(), proofs) for member in self._members.values()]

    def nodes(self) -> list[NodeReport]:
        """Return the slots and deltas of every source, as of the last look."""
        return [monitor.report() for monitor, _ in self._monitors.values()]

    def kick(self, sync: str) -> dict[str, int]:
        """Ask for all that is committed by now on the sources of a sync; return the number of the kick for each source.

        Raises UnknownSyncError; UsageError if the sync is paused; ConnectError and SourceError if it is continuous and a source
        does not answer.
        """
        return {source: runner.kick() for source, runner in self._runners_of(sync).items()}

    def copy_again(self, sync: str, table: TableName) -> None:
        """Have every target of a sync copy a table once more. Raises UnknownSyncError; UsageError if that is not possible."""
        runners, settings = self._runners_of(sync), self._config.syncs[sync]
        if settings.multi_master:
            raise UsageError(
                f'sync "{sync}" has several sources: they agree on one position for a table, so it is not copied again',
                f"compare its rows: streamer verify {sync}; write one that differs again where it is right, for example "
                "UPDATE … SET id = id WHERE id = …: the later write wins everywhere",
            )
        if not settings.selects(table):
            raise UsageError(f'sync "{sync}" does not select table "{table}"', "see: streamer tables")
        for runner in runners.values():
            runner.copy_again(table, "somebody has asked for it")

    def pause(self, sync: str) -> None:
        """Stop the streams of a sync until `resume`, or until the daemon ends. Raises UnknownSyncError."""
        for runner in self._runners_of(sync).values():
            runner.pause()

    def resume(self, sync: str) -> None:
        """Let the streams of a sync go on. Raises UnknownSyncError."""
        for runner in self._runners_of(sync).values():
            runner.resume()

    def hear(self, sync: str, body: bytes) -> None:
        """Take over what `streamer verify` has found of an edge. Raises UsageError, UnknownSyncError if we do not run it."""
        told = of_body(sync, body)
        runner = self._runners_of(sync).get(told.edge.source)
        if runner is None or told.edge.target not in (edge.target for edge in runner.report().edges):
            raise UsageError(f"the daemon does not run edge {told.edge}", "see: streamer status")
        self._provers.hear(told)

    def _runners_of(self, sync: str) -> dict[str, Runner]:
        members = self._members
        found = {source: m.stream for (name, source), m in members.items() if name == sync and isinstance(m.stream, Runner)}
        if not found:
            syncs = ", ".join(dict.fromkeys(name for name, _ in members))
            raise UnknownSyncError(f'the running daemon has no sync "{sync}"', f"it has {syncs}")
        return found


def _with_proofs(report: StreamReport, proofs: Mapping[EdgeName, ProofReport]) -> StreamReport:
    if not proofs:
        return report
    edges = [replace(edge, proof=proofs.get(EdgeName(edge.sync, edge.source, edge.target))) for edge in report.edges]
    return replace(report, edges=edges)


def _settings(config: Config, name: Name) -> object:
    """All of the config that makes a difference to a stream."""
    sync = config.syncs[name[0]]
    unguarded = {"max_retained_wal": None, "wal_guard": "alert"}
    nodes = {node: config.nodes[node].model_copy(update=unguarded) for node in (*sync.sources, *sync.targets)}
    return sync, nodes, {other for other, settings in config.syncs.items() if overlap(sync, settings)}


def _tune_interpreter() -> None:
    """Set what Python does on its own to what this process needs; both halve the time that a stream takes.

    Every change is a tuple that the cyclic collector would walk again and again while it waits in a queue, though rows never form
    cycles; so it runs seldom.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


@contextmanager
def heeding_signals(daemon: Daemon, *, reloads: bool) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the daemon while the context lasts, and with `reloads` SIGHUP have it read the config again; a
    second signal to stop ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        daemon.stop()

    def reload(number: int, frame: FrameType | None) -> None:
        daemon.ask_reload()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop} | ({signal.SIGHUP: reload} if reloads else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
