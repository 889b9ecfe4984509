"""Bucardo 5.6 and Londiste 3.11, the other replicators by triggers, as contenders of the benchmark beside streamer's daemon.

They are Debian packages, and take part if they are installed. Each is set up as its manual says, and looks for changes as often as
it bears: with its defaults Londiste would let a row wait for seconds. The tables of both databases are equal from the start, so
nothing is copied.

The traps: Bucardo keeps a database of its own, which needs PL/PerlU and a superuser named bucardo; it is made on the target's
server. pgqd, which cuts Londiste's queue into batches, is held with the replicator: else it would find thousands of small ones.

https://bucardo.org/Bucardo/cli/ https://pgq.github.io/extension/pgq/files/external-sql.html
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests import bucardo
from tests.bench.contenders import Contender, Daemon, Pair
from tests.bench.databases import TABLES

STREAMER: Final = "streamer"
NAMES: Final = (STREAMER, "bucardo", "londiste")
PROGRAMS: Final = {STREAMER: (), "bucardo": ("bucardo",), "londiste": ("londiste", "pgqd")}
PACKAGES: Final = {
    "bucardo": "bucardo postgresql-plperl-15",
    "londiste": "python3-londiste postgresql-15-londiste-sql postgresql-15-pgq3 postgresql-15-pgq-node pgqd",
}
_LOOK: Final = 0.05
"""Seconds between two looks of Londiste at its queue, and between two batches that pgqd cuts."""
_SYNC: Final = "bench"


def hold(contender: Contender) -> None:
    """Have its processes stand still."""
    _signal(contender.processes(), signal.SIGSTOP)


def release(contender: Contender) -> None:
    """Have them go on."""
    _signal(contender.processes(), signal.SIGCONT)


def is_installed(name: str) -> bool:
    """Whether the programs of a contender are here."""
    return all(shutil.which(program) for program in PROGRAMS[name])


def make(name: str, pair: Pair) -> Contender:
    """Return a contender of `NAMES`, set up but not started."""
    if name == STREAMER:
        return Streamer(pair)
    return Bucardo(pair) if name == "bucardo" else Londiste(pair)


class Streamer(Daemon):
    """The daemon, capturing by triggers."""

    def __init__(self, pair: Pair) -> None:
        super().__init__({"a": pair.source.url, "b": pair.target.url}, {"sources": ["a"], "targets": ["b"]}, "trigger")


class Bucardo(bucardo.Bucardo):
    """One sync, which its own triggers kick."""

    slot = ""

    def __init__(self, pair: Pair) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="streamer-bench-")
        super().__init__(pair.target.server, Path(self._temporary.name))
        for name, database in (("a", pair.source), ("b", pair.target)):
            self.add_database(name, database)
        self.command("add", "table", *(f"public.{table}" for table in TABLES), "db=a", "relgroup=bench")
        self.command("add", "sync", _SYNC, "relgroup=bench", "dbs=a:source,b:target", "onetimecopy=0")

    def start(self, sync: str = _SYNC) -> None:
        super().start(sync)

    def check(self) -> None:
        if not self.processes():
            raise RuntimeError(f"Bucardo has ended: {self.log[-2000:]}")

    def close(self) -> None:
        super().close()
        self.control.server.execute("DROP ROLE bucardo")
        self._temporary.cleanup()


class Londiste:
    """A root and a leaf, with their workers and the ticker of the root's queue."""

    slot = ""

    def __init__(self, pair: Pair) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="streamer-bench-")
        self._path = Path(self._directory.name)
        self._queue: list[subprocess.Popen[bytes]] = []
        self._leaf: subprocess.Popen[bytes] | None = None
        for name, database in (("a", pair.source), ("b", pair.target)):
            self._configure(name, "londiste", job_name=name, queue_name="bench", db=bucardo.dsn(database), loop_delay=_LOOK)
        connecting = bucardo.dsn(pair.source).partition(" ")[2]
        self._configure("pgqd", "pgqd", base_connstr=connecting, database_list=pair.source.name, ticker_period=_LOOK)
        self._command("a", "create-root", "a", bucardo.dsn(pair.source))
        self._command("b", "create-leaf", "b", bucardo.dsn(pair.target), f"--provider={bucardo.dsn(pair.source)}")
        pair.source.execute(f"SELECT pgq.set_queue_config('bench', 'ticker_max_lag', '{_LOOK} seconds')")
        self._command("a", "add-table", *TABLES)
        self._command("b", "add-table", *TABLES, "--expect-sync")
        self._queue = [_spawn("pgqd", self._path / "pgqd.ini"), _spawn("londiste", self._path / "a.ini", "worker")]

    @property
    def log(self) -> str:
        return _read(self._path.glob("*.log"))

    def processes(self) -> list[int]:
        return [] if self._leaf is None else [self._leaf.pid, self._queue[0].pid]

    def start(self) -> None:
        self._leaf = _spawn("londiste", self._path / "b.ini", "worker")

    def stop(self) -> None:
        if self._leaf is not None:
            _end(self._leaf)
            self._leaf = None

    def check(self) -> None:
        for process in (self._leaf, *self._queue):
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"a process of Londiste has ended: {self.log[-2000:]}")

    def close(self) -> None:
        self.stop()
        for process in self._queue:
            _end(process)
        self._directory.cleanup()

    def _configure(self, name: str, section: str, **settings: object) -> None:
        settings |= {"logfile": self._path / f"{name}.log", "pidfile": self._path / f"{name}.pid"}
        lines = [f"{setting} = {value}" for setting, value in settings.items()]
        (self._path / f"{name}.ini").write_text("\n".join([f"[{section}]", *lines]) + "\n")

    def _command(self, name: str, *arguments: str) -> None:
        bucardo.run(["londiste", str(self._path / f"{name}.ini"), *arguments], self._path)


# -- processes and files -----------------------------------------------------------------------------------------------------------


def _spawn(program: str, config: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [program, str(config), *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=30)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _read(files: Iterable[Path]) -> str:
    return "".join(file.read_text(errors="replace") for file in files)
