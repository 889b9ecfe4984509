"""`streamer demo`: three pgbench databases that all write the same rows, a copy of them, and an SQLite file, on this machine.

It does what a user would do, through the same code as the commands: setup, run, and look. All of it lives in one temporary
directory that is removed at the end, however that comes, unless the user wants to keep it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from streamer import config as config_module
from streamer import http_server, logs, topology
from streamer.admin.run import problems
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.demo import conflicts, shop
from streamer.demo.compare import Node, Verdict, add_up, compare
from streamer.demo.screen import Screen, conflict_table, money_table, verdict_table
from streamer.demo.server import Server
from streamer.errors import StreamerError
from streamer.model import LSN

REFRESH_SECONDS: Final = 0.25
CATCH_UP_SECONDS: Final = 60.0
"""How long the targets may take to get what was written when the load has stopped."""

LOG: Final = "streamer.log"

NODES: Final = (*shop.DATABASES, "file")
EXAMPLES: Final = 5
"""How many conflicts are shown."""

CONFIG: Final = """\
[nodes]
a.url = "{a}"
b.url = "{b}"
c.url = "{c}"
d.url = "{d}"
file.url = "sqlite:///{file}"

[syncs.shop]
sources = ["a", "b", "c"]
targets = ["d"]
tables  = ["public.*"]

[syncs.shop.table]
"public.pgbench_accounts".delta = ["abalance"]
"public.pgbench_tellers".delta  = ["tbalance"]
"public.pgbench_branches".delta = ["bbalance"]

[syncs.archive]
sources = ["c"]
targets = ["file"]
tables  = ["public.*"]

[http]
listen = "127.0.0.1:{port}"
"""


def run_demo(seconds: int, keep: bool) -> bool:
    """Run the demo with `seconds` of load; return whether all rows were equal at the end.

    Raises UsageError if PostgreSQL's programs are missing or do not run here, StreamerError if replication fails.
    """
    console = Console(highlight=False)
    with _ended_by_signals(), ExitStack() as cleanup:
        directory = Path(tempfile.mkdtemp(prefix="streamer-demo-"))
        cleanup.callback(shutil.rmtree, directory)
        server = Server(directory)
        cleanup.callback(server.stop)
        with _logging_to(directory / LOG):
            demo = _Demo(server, directory, console)
            demo.prepare()
            demo.replicate(seconds)
            equal = demo.judge()
            demo.tell_what_next(keep)
        if keep:
            cleanup.pop_all()
        return equal


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Send log records, which go to standard error, to the file: on the screen they would be in the way."""
    with file.open("w", encoding="utf-8") as log, redirect_stderr(log):
        logs.configure()
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end the demo by an exception, so that everything is cleaned up, and the next ones not disturb that."""

    def end(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Demo:
    """The acts of the demo, in order."""

    def __init__(self, server: Server, directory: Path, console: Console) -> None:
        self._server = server
        self._console = console
        self._directory = directory
        self._config_file = directory / "streamer.toml"
        self._file = directory / "shop.sqlite"

    def prepare(self) -> None:
        """Start PostgreSQL, make the databases and the config."""
        self._say(f"Starting a PostgreSQL of its own in {self._directory}")
        self._server.start()
        writers = ", ".join(shop.WRITERS)
        self._say(f"Creating databases {writers} with the same {shop.ACCOUNTS:,} pgbench accounts, and {shop.COPY} with nothing")
        shop.create(self._server, self._directory)
        urls = {database: self._server.url(database) for database in shop.DATABASES}
        self._config_file.write_text(CONFIG.format(**urls, file=self._file, port=_free_port()))

    def replicate(self, seconds: int) -> None:
        """Replicate while pgbench writes to all three sources, and wait until all nodes have everything."""
        config = config_module.load(self._config_file)
        topology.check(config)
        self._say("\n$ streamer setup --fix")
        setup(config, None, lambda line: self._say(f"  {line}"), fix=True)
        self._say(f"\n$ streamer run            # while pgbench writes to {', '.join(shop.WRITERS)} for {seconds} s")
        with _running(config) as daemon, Screen(self._console, daemon.report) as screen:
            with shop.load(self._server, self._directory, seconds) as load:
                _show_until(lambda: all(part.poll() is not None for part in load), daemon, screen, "pgbench writes")
            stopped = time.monotonic()
            caught_up = self._catch_up(daemon, screen)
            waited = time.monotonic() - stopped
            screen.show("all nodes have everything" if caught_up else "some nodes are behind")
        if not caught_up:
            raise StreamerError(f"the nodes did not get everything within {CATCH_UP_SECONDS:.0f} s", "is this machine busy?")
        self._say(f"All nodes had everything {waited:.1f} s after the load had stopped. Comparing every row.\n")

    def _catch_up(self, daemon: Daemon, screen: Screen) -> bool:
        """Wait for everything to be everywhere; twice, because a node may have heard something that it has to hand on."""
        return all(
            _show_until(partial(_holds, daemon, last), daemon, screen, "pgbench has stopped", CATCH_UP_SECONDS)
            for last in (shop.last_transactions(self._server) for _ in range(2))
        )

    def judge(self) -> bool:
        """Compare all nodes and print what that says; return whether all is equal and adds up."""
        sync = config_module.load(self._config_file).syncs["shop"]
        with ExitStack() as stack:
            databases = [stack.enter_context(shop.session(self._server, name)) for name in shop.DATABASES]
            nodes: list[Node] = [*databases, stack.enter_context(closing(sqlite3.connect(self._file)))]
            verdicts, sums = compare(sync, nodes), add_up(nodes)
            self._tell_conflicts(conflicts.read(databases))
        self._console.print(verdict_table(verdicts, NODES))
        self._console.print(money_table(sums, NODES))
        return self._tell_verdict(verdicts, len({amount for found in sums.values() for amount in found}) == 1)

    def _tell_conflicts(self, found: Sequence[conflicts.Recorded]) -> None:
        """Print how many conflicts there were, and show some."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in conflicts.by_kind(found).items())
        title = f"{len(found):,} conflicts were resolved{f': {kinds}' if kinds else ''}"
        self._console.print(conflict_table(conflicts.examples(found, EXAMPLES), title))

    def _tell_verdict(self, verdicts: Sequence[Verdict], adds_up: bool) -> bool:
        equal = all(verdict.equal for verdict in verdicts)
        if equal and adds_up:
            self._say(f"Every row of every table is equal on all {len(NODES)}, and not one payment is lost or counted twice.")
        else:
            self._say("The nodes are NOT equal: that is a bug, please report it.")
        return equal and adds_up

    def tell_what_next(self, keep: bool) -> None:
        """Print where to look."""
        if not keep:
            self._say("Everything is removed again; --keep leaves it in place.")
            self._say("To replicate a database of your own: streamer init, and see README.md.")
            return
        streamer = shutil.which("streamer") or f"{sys.executable} -m streamer.cli"
        self._say("\nPostgreSQL still runs, and everything is in place. To look around:")
        for command in (
            f"cat {self._config_file} {self._directory / LOG}",
            f"{streamer} run --config {self._config_file}",
            f"{streamer} status --config {self._config_file}",
            f"{streamer} conflicts list --config {self._config_file}",
            f'{self._server.programs / "psql"} "{self._server.url(shop.WRITERS[0])}"',
            f"sqlite3 {self._file}",
        ):
            self._say(f"  {command}")
        self._say("To remove it:")
        self._say(
            f"  kill -INT {self._server.pid}; while [ -e {self._server.pid_file} ]; do sleep 1; done; rm -r {self._directory}"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(config: Config) -> Iterator[Daemon]:
    """Run the daemon in a thread while the context lasts."""
    daemon = Daemon(config)
    thread = threading.Thread(target=daemon.run, name="daemon")
    with http_server.serving(config.http.address, daemon):
        thread.start()
        try:
            yield daemon
        finally:
            daemon.stop()
            thread.join()


def _show_until(reached: Callable[[], bool], daemon: Daemon, screen: Screen, doing: str, patience: float = float("inf")) -> bool:
    """Keep the screen going until something is reached; return whether it was, within `patience` seconds.

    Raises StreamerError with the first problem that replication has.
    """
    deadline = time.monotonic() + patience
    while not reached():
        for problem in problems(daemon.report()):
            raise StreamerError(problem.message, problem.hint)
        if time.monotonic() > deadline:
            return False
        screen.show(doing)
        time.sleep(REFRESH_SECONDS)
    return True


def _holds(daemon: Daemon, positions: Mapping[str, LSN]) -> bool:
    """Whether every target has made durable what was committed on its sources before these positions."""
    edges = [edge for stream in daemon.report() for edge in stream.edges]
    return all(edge.position and LSN.parse(edge.position) > positions[edge.source] for edge in edges)
