"""Private PostgreSQL servers for tests, made from any directory of binaries.

A `PostgresServer` makes its cluster in a temporary directory of its own, listens on 127.0.0.1 only, and runs as an
unprivileged user when the tests run as root, since PostgreSQL refuses root. The role `postgres` is trusted; every
other role needs its password, so that tests of rights and of wrong passwords mean something.
The trap: however the test run ends, kill -9 included, no server may stay behind. A shell beside each server holds the
other end of a pipe of ours: when the pipe closes, it stops the server and removes its directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests.binaries import has_wal2json, server_version
from tests.waiting import wait_for

SUPERUSER = "postgres"
StopMode = Literal["smart", "fast", "immediate"]
STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
PATIENCE = 120.0  # seconds for a start or a stop; crash recovery and a shutdown checkpoint may be slow on a busy machine
# Below the ports that the kernel gives to clients: a client that calls a stopped server's port again and again could
# otherwise be given that very port as its own, would talk to itself, and the server could not come back to it.
PORTS = range(20000, 32000)
HBA = f"""\
local all         {SUPERUSER}              trust
host  all         {SUPERUSER} 127.0.0.1/32 trust
host  replication {SUPERUSER} 127.0.0.1/32 trust
host  all         all      127.0.0.1/32 scram-sha-256
host  replication all      127.0.0.1/32 scram-sha-256
"""
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_level": "logical",
    "max_replication_slots": "60",
    "max_wal_senders": "60",
    "wal_sender_timeout": "10s",
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "track_commit_timestamp": "on",
    "fsync": "off",
    "password_encryption": "scram-sha-256",
    "log_line_prefix": "%m [%p] %q%a %u@%d ",
    "log_replication_commands": "on",
}
SINCE = {
    "wal_level": 90400,
    "max_replication_slots": 90400,
    "max_wal_senders": 90400,
    "wal_sender_timeout": 90300,
    "max_wal_size": 90500,
    "min_wal_size": 90500,
    "track_commit_timestamp": 90500,
    "password_encryption": 100000,
    "log_replication_commands": 90500,
}
"""The first version that takes one of the settings as it stands above."""
SCRAM = 100000
UNSYNCED_INITDB = 90300
SOCKET_DIRECTORIES = 90300
PLPGSQL = 90000  # from here on every database has it
APPLICATION_NAME = 90000
ORIGINS = 90500
SLOTS = 90400
PID = 90200  # pg_stat_activity.pid
FAKETIME = "faketime/libfaketime.so.1"
"""Debian's library that shifts a process's clock (package libfaketime), below a directory of libraries."""
DEAD_MANS_SWITCH = 'cat >/dev/null; "$1" stop -D "$2" -m immediate -s >/dev/null 2>&1; rm -rf "$3"'

Statement = str | sql.SQL | sql.Composed
Row = tuple[Any, ...]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    dice = random.SystemRandom()  # never seeded: two runs on one machine must not choose the same ports
    while True:
        port = dice.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def unprivileged() -> dict[str, Any]:
    """Arguments for subprocess that leave root behind; none if we are not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def faketime_library() -> Path | None:
    """The library that shifts a clock, or None if it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob(f"*/{FAKETIME}"))), None)


class PostgresServer:
    """One private cluster and its postmaster. Make it, `start()` it, and `close()` it in a finally."""

    def __init__(self, bin_dir: Path, settings: Mapping[str, str] | None = None, clock: str | None = None) -> None:
        """Run initdb with the binaries of `bin_dir`; `settings` are added to `SETTINGS` in postgresql.conf.

        `clock` shifts the server's clock: "+3s" is three seconds ahead. It can be changed while the server is stopped.
        """
        self.version = server_version(bin_dir)
        self.wal2json = has_wal2json(bin_dir)
        self.directory = Path(tempfile.mkdtemp(prefix="streamer-pg-"))
        self.data_dir = self.directory / "data"
        self.bin_dir = self._reachable(bin_dir)
        self.port = free_port()
        self.clock = clock
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._hand_over(self.directory)
        self._switch = self._arm_switch()
        try:
            self._initdb(settings or {})
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"PostgresServer({self.version} on port {self.port})"

    @property
    def running(self) -> bool:
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def pid(self) -> int:
        """The pid of the postmaster."""
        if self._postmaster is None:
            raise RuntimeError(f"{self!r} is not started")
        return self._postmaster.pid

    @property
    def log(self) -> str:
        """All that the server has logged since it was made."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, on the same port every time, and return when it takes connections; running is fine."""
        if self.running:
            return
        with self._log_path.open("ab") as log:
            self._postmaster = self._spawn(["postgres", "-D", str(self.data_dir)], stdout=log, **self._clock_shift())
        wait_for(self._answers, f"{self!r} to take connections", PATIENCE)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server in one of PostgreSQL's shutdown modes and wait until it is gone; stopped is fine."""
        if self.running:
            self._end(STOP_SIGNALS[mode])

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until its backends have noticed and left."""
        if self.running:
            self._end(signal.SIGKILL)
        wait_for(self._deserted, f"the backends of {self!r} to notice that it was killed", PATIENCE)

    def close(self) -> None:
        """Stop the server and remove all of it."""
        try:
            self.stop("immediate")
        finally:
            self._switch.communicate()  # closes the pipe; the shell removes the directory

    # -- talking to it ------------------------------------------------------------------------------------------------

    def url(self, database: str = SUPERUSER, user: str = SUPERUSER, password: str | None = None) -> str:
        """A connection URL; only the superuser needs no password."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{quote(user, safe='')}{secret}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str = SUPERUSER) -> psycopg.Connection[Row]:
        """A new connection of the superuser, in autocommit mode."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=10)

    def execute(self, statement: Statement, parameters: Sequence[object] | None = None, database: str = SUPERUSER) -> None:
        """Run one statement, or several in one string if there are no parameters, on a connection of its own."""
        with self.connect(database) as connection:
            connection.execute(_query(statement), parameters)

    def query(self, statement: Statement, parameters: Sequence[object] | None = None, database: str = SUPERUSER) -> list[Row]:
        """Run one statement on a connection of its own and return its rows."""
        with self.connect(database) as connection:
            return connection.execute(_query(statement), parameters).fetchall()

    def psql(self, script: str) -> None:
        """Run a script as the superuser in psql, with its own commands, until the first error."""
        command = [str(self.bin_dir / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", self.url()]
        subprocess.run(command, input=script, text=True, check=True)

    def create_database(self, name: str) -> Database:
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        if self.version < PLPGSQL:
            self.execute("CREATE LANGUAGE plpgsql", database=name)
        return Database(self, name)

    # -- how it is made -----------------------------------------------------------------------------------------------

    @property
    def _log_path(self) -> Path:
        return self.directory / "log"

    def _reachable(self, bin_dir: Path) -> Path:
        """`bin_dir`, or a copy of the installation where the unprivileged user may not read it (below /root, say)."""
        try:
            subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, cwd="/", **unprivileged())
        except PermissionError:
            return self._copy(bin_dir)
        return bin_dir

    def _copy(self, bin_dir: Path) -> Path:
        package, installation = bin_dir.parts[-3:-1]
        shutil.copytree(bin_dir.parent, self.directory / package / installation, symlinks=True)
        for libraries in bin_dir.parents[2].glob(f"{package}.libs"):  # a wheel has them beside its package
            shutil.copytree(libraries, self.directory / libraries.name, symlinks=True)
        return self.directory / package / installation / bin_dir.name

    def _hand_over(self, path: Path) -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            subprocess.run(["chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", path], check=True)

    def _arm_switch(self) -> subprocess.Popen[bytes]:
        arguments = [str(self.bin_dir / "pg_ctl"), str(self.data_dir), str(self.directory)]
        return subprocess.Popen(
            ["sh", "-c", DEAD_MANS_SWITCH, "sh", *arguments],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            **unprivileged(),
        )

    def _initdb(self, settings: Mapping[str, str]) -> None:
        command = ["initdb", "-D", str(self.data_dir), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C"]
        self._must([*command, "-N"] if self.version >= UNSYNCED_INITDB else command)
        (self.data_dir / "pg_hba.conf").write_text(HBA if self.version >= SCRAM else HBA.replace("scram-sha-256", "md5"))
        lines = [f"{name} = '{value}'" for name, value in (self._settings() | dict(settings)).items()]
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            conf.write("\n".join(lines) + "\n")

    def _settings(self) -> dict[str, str]:
        plural = "unix_socket_directories" if self.version >= SOCKET_DIRECTORIES else "unix_socket_directory"
        more = {"port": str(self.port), plural: str(self.directory)}
        if self.version < APPLICATION_NAME:
            more["log_line_prefix"] = SETTINGS["log_line_prefix"].replace("%a ", "")
        if self.version >= 180000:
            more["max_active_replication_origins"] = "60"
        if self.wal2json and self._knows("output_plugin_libraries"):
            more["output_plugin_libraries"] = "pgoutput, test_decoding, wal2json"
        return {name: value for name, value in SETTINGS.items() if self.version >= SINCE.get(name, 0)} | more

    def _knows(self, setting: str) -> bool:
        """Ask the binary, since a server with an unknown setting in its file does not start."""
        asked = self._spawn(["postgres", "-D", str(self.data_dir), "-C", setting], stdout=subprocess.PIPE)
        asked.communicate()
        return asked.returncode == 0

    def _must(self, command: list[str]) -> None:
        done = self._spawn(command, stdout=subprocess.PIPE)
        printed, _ = done.communicate()
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {printed.decode(errors='replace')}")

    def _clock_shift(self) -> dict[str, str]:
        """Environment variables that shift the clock, of the calendar only: timeouts go by the other one."""
        if self.clock is None:
            return {}
        library = faketime_library()
        if library is None:
            raise RuntimeError("libfaketime is missing: apt-get install libfaketime")
        return {"LD_PRELOAD": str(library), "FAKETIME": self.clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def _spawn(self, command: list[str], stdout: IO[bytes] | int, **environment: str) -> subprocess.Popen[bytes]:
        """Start one of our binaries, outside our process group, so that Ctrl-C is ours alone."""
        program, *arguments = command
        return subprocess.Popen(
            [str(self.bin_dir / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))} | environment,
            start_new_session=True,
            **unprivileged(),
        )

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self!r} did not start: {self.log[-2000:]}")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, number: signal.Signals) -> None:
        assert self._postmaster is not None
        self._postmaster.send_signal(number)
        try:
            self._postmaster.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self!r} did not end on {number.name}: {self.log[-2000:]}") from None

    def _deserted(self) -> bool:
        """Whether no process of this cluster is left: each of them works in the data directory."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended while we looked, or is somebody else's
                if (entry / "cwd").readlink() == self.data_dir:
                    return False
        return True


class Database:
    """One database of a `PostgresServer`."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name

    def __repr__(self) -> str:
        return f"Database({self.name!r} of {self.server!r})"

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def connect(self) -> psycopg.Connection[Row]:
        return self.server.connect(self.name)

    def execute(self, statement: Statement, parameters: Sequence[object] | None = None) -> None:
        self.server.execute(statement, parameters, self.name)

    def query(self, statement: Statement, parameters: Sequence[object] | None = None) -> list[Row]:
        return self.server.query(statement, parameters, self.name)

    def drop(self) -> None:
        """Drop the database with its slots, whoever is connected to it; one that is gone already is fine."""
        wait_for(self._emptied, f"the sessions and slots of {self!r} to end")
        self.server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(self.name)))

    def _emptied(self) -> bool:
        """End whatever uses the database; True when nothing was left. A session needs a moment to notice."""
        with self.server.connect() as connection:
            pid = "pid" if self.server.version >= PID else "procpid"
            query = f"SELECT pg_terminate_backend({pid}) FROM pg_stat_activity WHERE datname = %s"
            ended = connection.execute(query.encode(), [self.name])
            return ended.rowcount == 0 and not (self.server.version >= SLOTS and self._drop_slots(connection))

    def _drop_slots(self, connection: psycopg.Connection[Row]) -> bool:
        """Drop the slots that nobody reads any more, and say whether there were any."""
        query = "SELECT slot_name, active FROM pg_replication_slots WHERE database = %s"
        slots = connection.execute(query, [self.name]).fetchall()
        for slot_name, active in slots:
            if not active:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot_name])
        return bool(slots)


def _query(statement: Statement) -> bytes | sql.SQL | sql.Composed:
    """What psycopg takes: it wants a literal string, and tests build theirs."""
    return statement.encode() if isinstance(statement, str) else statement
