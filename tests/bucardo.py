"""Bucardo as a user runs it: its command, its daemon, and a control database of its own.

The traps: the control database needs PL/PerlU on its server, and a superuser named bucardo, who is made with it; the command leaves
a file where it is started and a password at home, so a directory of the test's is both; and `bucardo stop` only asks for the end.

https://bucardo.org/Bucardo/cli/
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.processes import runs, with_children
from tests.servers import SUPERUSER, Database, PostgresServer
from tests.waiting import wait_for

PROGRAM: Final = "bucardo"
_PATIENCE: Final = 60.0
"""Seconds: it looks for work, and for its end, a few times a second."""


def missing(server: PostgresServer) -> str:
    """What has to be installed before Bucardo can keep its control database on the server; empty if nothing."""
    if shutil.which(PROGRAM) is None:
        return "Bucardo is missing: install bucardo"
    if not list((server.bin_dir.parent / "lib").rglob("plperl.so")):
        return f"{server.bin_dir} has no PL/Perl: install postgresql-plperl-{server.version // 10000}"
    return ""


class Bucardo:
    """An installation whose control database is on `server`. `close()` it in a finally."""

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        self._server = server
        self.directory = directory
        #: the command with the options that lead to this installation
        self.program = [
            PROGRAM,
            "--no-bucardorc",
            "--dbhost=127.0.0.1",
            f"--dbport={server.port}",
            f"--dbuser={SUPERUSER}",
            f"--dbname={self.control.name}",
            f"--log-dest={directory}",
            f"--pid-dir={directory}",
        ]
        self.command("install", "--batch")
        self.command("set", f"reason_file={directory}/reason", f"warning_file={directory}/warnings")

    @property
    def control(self) -> Database:
        """Its database."""
        return Database(self._server, "bucardo")

    @property
    def log(self) -> str:
        """What the daemon has written."""
        return "".join(file.read_text(errors="replace") for file in self.directory.glob("log*"))

    def command(self, *arguments: str) -> str:
        """Run `bucardo` with these arguments; return what it prints."""
        return run([*self.program, *arguments], self.directory)

    def add_database(self, name: str, database: Database, *more: str) -> None:
        """Tell it of a database; `more` takes the place of what `dsn` says."""
        self.command("add", "db", name, *dsn(database).split(), *more)

    def processes(self) -> list[int]:
        """The daemon's, by pid; none while it does not run."""
        file = self.directory / "bucardo.mcp.pid"
        return list(with_children(int(file.read_text().split()[0]))) if file.exists() else []

    def start(self, sync: str) -> None:
        """Start the daemon, and wait until it works on the sync."""
        self.command("start")
        wait_for(lambda: f"KID ({sync}) New kid" in self.log, "Bucardo to begin", _PATIENCE)

    def stop(self) -> None:
        """Stop the daemon, and wait until it has ended."""
        running = self.processes()
        self.command("stop")
        wait_for(lambda: not any(map(runs, running)), "Bucardo to end", _PATIENCE)

    def close(self) -> None:
        """Stop what runs, and drop its database; the role stays, as databases may be its own."""
        self.stop()
        self.control.drop()


def dsn(database: Database) -> str:
    """A database as Bucardo and Londiste are told of it."""
    return f"dbname={database.name} host=127.0.0.1 port={database.server.port} user={SUPERUSER}"


def run(command: list[str], directory: Path) -> str:
    """Run a command in a directory that is its home as well; return what it prints. Raises RuntimeError if it fails."""
    environment = os.environ | {"HOME": str(directory)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
    return done.stdout
