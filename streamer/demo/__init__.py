"""`streamer demo`: a pgbench database replicated live to a second PostgreSQL database and to an SQLite file, on this machine.

It does what a user would do, through the same code as the commands: setup, run, and look. All of it lives in one temporary
directory that is removed at the end, however that comes, unless the user wants to keep it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from streamer import config as config_module
from streamer import http, logs, topology
from streamer.admin.run import problems
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.demo import shop
from streamer.demo.compare import Verdict, compare
from streamer.demo.screen import Screen, verdict_table
from streamer.demo.server import Server
from streamer.errors import StreamerError
from streamer.model import LSN

REFRESH_SECONDS: Final = 0.25
CATCH_UP_SECONDS: Final = 60.0
"""How long the targets may take to get what was written when the load has stopped."""

LOG: Final = "streamer.log"

CONFIG: Final = """\
[nodes]
shop.url = "{source}"
copy.url = "{target}"
file.url = "sqlite:///{file}"

[syncs.demo]
sources = ["shop"]
targets = ["copy", "file"]
tables  = ["public.pgbench_*"]

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
            equal = demo.judge(demo.replicate(seconds))
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
        self._config_file = directory / "streamer.toml"
        self._file = directory / "shop.sqlite"

    def prepare(self) -> None:
        """Start PostgreSQL, make the databases and the config."""
        self._say(f"Starting a PostgreSQL of its own in {self._config_file.parent}")
        self._server.start()
        self._say(f"Creating database {shop.SOURCE} with {shop.SCALE * 100_000:,} pgbench accounts, and {shop.TARGET} with nothing")
        shop.create(self._server)
        self._config_file.write_text(
            CONFIG.format(
                source=self._server.url(shop.SOURCE), target=self._server.url(shop.TARGET), file=self._file, port=_free_port()
            )
        )

    def replicate(self, seconds: int) -> list[Verdict]:
        """Replicate while pgbench writes, wait for the targets to have everything, and compare."""
        config = config_module.load(self._config_file)
        topology.check(config)
        self._say("\n$ streamer setup")
        setup(config, None, lambda line: self._say(f"  {line}"))
        self._say(f"\n$ streamer run                   # while pgbench writes for {seconds} s")
        with _running(config) as daemon, Screen(self._console, daemon.report) as screen:
            with shop.load(self._server, seconds) as load:
                _show_until(lambda: load.poll() is not None, daemon, screen, "pgbench writes")
            last = shop.last_transaction(self._server)
            stopped = time.monotonic()
            caught_up = _show_until(lambda: _holds(daemon, last), daemon, screen, "pgbench has stopped", CATCH_UP_SECONDS)
            waited = time.monotonic() - stopped
            screen.show("both targets have everything" if caught_up else "the targets are behind")
        if not caught_up:
            raise StreamerError(f"the targets did not get everything within {CATCH_UP_SECONDS:.0f} s", "is this machine busy?")
        self._say(f"Both targets had everything {waited:.1f} s after the load had stopped. Comparing every row.\n")
        with shop.session(self._server, shop.SOURCE) as source, shop.session(self._server, shop.TARGET) as target:
            return compare(config.syncs["demo"], source, target, self._file)

    def judge(self, verdicts: Sequence[Verdict]) -> bool:
        """Print what the comparison says; return whether all is equal."""
        self._console.print(verdict_table(verdicts, ("shop", "copy", "file")))
        equal = all(verdict.equal for verdict in verdicts)
        if equal:
            self._say("Every row of every table is equal on all three.")
        else:
            self._say("The rows are NOT equal: that is a bug, please report it.")
        return equal

    def tell_what_next(self, keep: bool) -> None:
        """Print where to look."""
        if not keep:
            self._say("Everything is removed again; --keep leaves it in place.")
            self._say("To replicate a database of your own: streamer init, and see README.md.")
            return
        streamer = shutil.which("streamer") or f"{sys.executable} -m streamer.cli"
        directory = self._config_file.parent
        self._say("\nPostgreSQL still runs, and everything is in place. To look around:")
        for command in (
            f"cat {self._config_file} {directory / LOG}",
            f"{streamer} run --config {self._config_file}",
            f"{streamer} status --config {self._config_file}",
            f'{self._server.programs / "psql"} "{self._server.url(shop.SOURCE)}"',
            f"sqlite3 {self._file}",
        ):
            self._say(f"  {command}")
        self._say("To remove it:")
        self._say(f"  kill -INT {self._server.pid}; while [ -e {self._server.pid_file} ]; do sleep 1; done; rm -r {directory}")

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
    with http.serving(config.http.address, daemon.report):
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


def _holds(daemon: Daemon, position: LSN) -> bool:
    """Whether every target has made durable what was committed before the position."""
    edges = [edge for stream in daemon.report() for edge in stream.edges]
    return all(edge.position and LSN.parse(edge.position) > position for edge in edges)
