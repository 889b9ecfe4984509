"""Streams inside the test's own process, over real servers: set up, run, and looked at without a command line between.

The trap: streams tune the interpreter for themselves; what they changed is put back when they end.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from streamer.admin.setup import setup
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.report import EdgeReport, NodeReport, State, StreamReport
from tests.conftest import Databases
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for


class Running:
    """A daemon in a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def reports(self) -> list[StreamReport]:
        """What the streams report."""
        return self._daemon.report()

    @property
    def nodes(self) -> list[NodeReport]:
        """What was seen of the slots of each source."""
        return self._daemon.nodes()

    def kick(self, sync: str) -> None:
        """Ask for all that is committed by now."""
        self._daemon.kick(sync)

    def pause(self, sync: str) -> None:
        """Stop the streams of a sync."""
        self._daemon.pause(sync)

    def resume(self, sync: str) -> None:
        """Let them go on."""
        self._daemon.resume(sync)

    @property
    def edges(self) -> dict[str, EdgeReport]:
        """What the edges report, by `source->target`."""
        return {f"{e.source}->{e.target}": e for stream in self._daemon.report() for e in stream.edges}

    @property
    def problems(self) -> list[str]:
        """What streams and edges complain of."""
        streams = self._daemon.report()
        found = [s.problem for s in streams] + [e.problem for s in streams for e in s.edges]
        return [problem.message for problem in found if problem is not None]

    @property
    def applied(self) -> dict[str, int]:
        """How many transactions each edge has applied."""
        return {name: edge.counters.transactions for name, edge in self.edges.items()}

    def wait_until_streaming(self) -> None:
        """Wait until all streams are read and all edges written."""
        wait_for(lambda: self._states() == {State.STREAMING}, "all edges to stream")

    def wait_for_problem(self, words: str) -> str:
        """Wait until a stream or edge complains with these words; return what it says."""
        found = wait_for(lambda: [p for p in self.problems if words in p], f'"{words}" in what streams complain of')
        return found[0]

    def _states(self) -> set[State]:
        streams = self._daemon.report()
        return {s.state for s in streams} | {e.state for s in streams for e in s.edges}


@contextmanager
def tuned_back() -> Iterator[None]:
    """Put back what streams change of the interpreter."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def daemon_running(config: Config, source: str | None = None) -> Iterator[Daemon]:
    """Run the syncs of the config, or those from one source, while the context lasts."""
    with tuned_back():
        daemon = Daemon(config, source=source)
        thread = threading.Thread(target=daemon.run)
        thread.start()
        try:
            yield daemon
        finally:
            daemon.stop()
            thread.join()


@contextmanager
def running(config: Config, *, source: str | None = None, wait: bool = True, set_up: bool = True) -> Iterator[Running]:
    """Set up the config's syncs and run them, or those from one source, while the context lasts; with `wait`, from when all of them
    stream."""
    if set_up:
        setup(config, None, lambda line: None)
    with daemon_running(config, source) as daemon:
        streams = Running(daemon)
        if wait:
            streams.wait_until_streaming()
        yield streams


def four_nodes(databases: Databases, pg15: PostgresServer, pg18: PostgresServer, tables: Sequence[str]) -> dict[str, Database]:
    """Four databases with the same empty tables."""
    servers = {"a": pg15, "b": pg18, "c": pg15, "d": pg18}
    made = {name: databases.create(server, f"join_{name}") for name, server in servers.items()}
    for database in made.values():
        for table in tables:
            database.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, writer text, n integer NOT NULL)")
            database.execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
    return made
