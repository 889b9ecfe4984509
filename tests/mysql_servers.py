"""Private MariaDB servers for tests, made as those of servers.py are, from the distribution's binaries.

`STREAMER_MYSQL` names a directory with the `mysqld` of MySQL 8.0 or later, which then takes MariaDB's place in all tests.

A `MysqlServer` has its data in a temporary directory of its own, listens on 127.0.0.1 and on a socket there, and runs as an
unprivileged user. `root` needs no password; every other user has one. However the test run ends, nothing stays behind: a shell
holds the other end of a pipe of ours, and kills the server when it closes.

https://mariadb.com/kb/en/mariadb-install-db/, https://dev.mysql.com/doc/refman/8.4/en/data-directory-initialization.html
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql
from pymysql.constants import CLIENT, ER

from tests.servers import PATIENCE, free_port, unprivileged
from tests.waiting import wait_for

Row = tuple[Any, ...]
SETTINGS = {
    "bind-address": "127.0.0.1",
    "skip-name-resolve": "1",
    "innodb-buffer-pool-size": "64M",
    "loose-innodb-log-file-size": "256M",
    "loose-innodb-redo-log-capacity": "512M",  # MySQL's name for it
    "innodb-flush-log-at-trx-commit": "1",
    "innodb-lock-wait-timeout": "10",
    "max-connections": "100",
    "local-infile": "1",
    "secure-file-priv": "",  # the default of a package may be a directory that only its scripts make
    "skip-log-bin": "1",
    "loose-mysqlx": "0",
}
DEAD_MANS_SWITCH = 'cat >/dev/null; [ -s "$1/pid" ] && kill -9 "$(cat "$1/pid")" 2>/dev/null; rm -rf "$1"'


def server_binary() -> Path | None:
    """The server's binary: that of `STREAMER_MYSQL`, else MariaDB's, else None."""
    if chosen := os.environ.get("STREAMER_MYSQL"):
        return Path(chosen) / "mysqld"
    path = shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    return Path(path) if path and shutil.which("mariadb-install-db") else None


class MysqlServer:
    """One private server. Make it, `start()` it, and `close()` it in a finally."""

    def __init__(self, binary: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="streamer-my-"))
        self.port = free_port()
        self._binary = binary
        self._settings = SETTINGS | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        nobody = unprivileged()
        if nobody:
            shutil.chown(self.directory, nobody["user"], nobody["group"])
        self._switch = subprocess.Popen(
            ["sh", "-c", DEAD_MANS_SWITCH, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            **nobody,
        )
        try:
            self._install()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"MysqlServer(port {self.port})"

    @property
    def is_mysql(self) -> bool:
        """Whether it is MySQL's server, and not MariaDB's."""
        return self._binary.name == "mysqld"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def socket(self) -> Path:
        return self.directory / "sock"

    @property
    def log(self) -> str:
        """All that the server has logged since it was made."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, on the same port every time, and return when it takes connections; running is fine."""
        if self.running:
            return
        arguments = {
            "datadir": self.directory / "data",
            "socket": self.socket,
            "pid-file": self.directory / "pid",
            "tmpdir": self.directory,
            "port": self.port,
            **self._settings,
        }
        with (self.directory / "log").open("ab") as log:
            self._process = self._spawn([self._binary, "--no-defaults", *(f"--{n}={v}" for n, v in arguments.items())], log)
        wait_for(self._answers, f"{self!r} to take connections", PATIENCE)

    def stop(self) -> None:
        """Shut the server down and wait until it is gone; stopped is fine."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop the server and remove all of it."""
        try:
            self.kill()
        finally:
            self._switch.communicate()  # closes the pipe; the shell removes the directory

    # -- talking to it ------------------------------------------------------------------------------------------------

    def url(self, database: str, user: str = "root", password: str = "") -> str:
        secret = f":{quote(password, safe='')}" if password else ""
        return f"mysql://{quote(user, safe='')}{secret}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str | None = None) -> pymysql.Connection[Any]:
        """A new connection of root, in autocommit mode, through the socket."""
        return pymysql.connect(
            unix_socket=str(self.socket),
            user="root",
            database=database,
            autocommit=True,
            client_flag=CLIENT.FOUND_ROWS,
            ssl_disabled=True,
            init_command="SET time_zone = '+00:00'",
        )

    def execute(self, statement: str, parameters: Sequence[object] | None = None, database: str | None = None) -> None:
        """Run one statement on a connection of its own."""
        self.query(statement, parameters, database)

    def query(self, statement: str, parameters: Sequence[object] | None = None, database: str | None = None) -> list[Row]:
        """Run one statement on a connection of its own and return its rows."""
        with closing(self.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def create_database(self, name: str) -> MysqlDatabase:
        self.execute(f"CREATE DATABASE {_quoted(name)} CHARACTER SET utf8mb4")
        return MysqlDatabase(self, name)

    # -- how it is made -----------------------------------------------------------------------------------------------

    def _install(self) -> None:
        data = f"--datadir={self.directory / 'data'}"
        if self.is_mysql:
            accounts = self.directory / "accounts.sql"
            accounts.write_text("CREATE USER root@'127.0.0.1';\nGRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n")
            command: list[str | Path] = [self._binary, "--no-defaults", "--initialize-insecure", data, f"--init-file={accounts}"]
        else:
            command = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", "--skip-test-db"]
        made = self._spawn(command, subprocess.PIPE)
        printed, _ = made.communicate()
        if made.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {printed.decode(errors='replace')}")

    def _spawn(self, command: Sequence[str | Path], stdout: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401  # as Popen has it
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            start_new_session=True,  # so that Ctrl-C is ours alone
            **unprivileged(),
        )

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self!r} did not start: {self.log[-2000:]}")
        try:
            with socket.socket(socket.AF_UNIX) as probe:  # PyMySQL would leave one open that is refused
                probe.connect(str(self.socket))
            self.connect().close()
        except (OSError, pymysql.err.OperationalError):
            return False
        return True

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self!r} did not end on {number.name}: {self.log[-2000:]}") from None


class MysqlDatabase:
    """One database of a `MysqlServer`."""

    def __init__(self, server: MysqlServer, name: str) -> None:
        self.server = server
        self.name = name

    def __repr__(self) -> str:
        return f"MysqlDatabase({self.name!r} of {self.server!r})"

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> None:
        self.server.execute(statement, parameters, self.name)

    def query(self, statement: str, parameters: Sequence[object] | None = None) -> list[Row]:
        return self.server.query(statement, parameters, self.name)

    def drop(self) -> None:
        """Drop the database, ending whoever is connected to it."""
        wait_for(self._emptied, f"the sessions of {self!r} to end")
        self.server.execute(f"DROP DATABASE IF EXISTS {_quoted(self.name)}")

    def _emptied(self) -> bool:
        sessions = self.server.query("SELECT id FROM information_schema.processlist WHERE db = %s", [self.name])
        for (number,) in sessions:
            try:
                self.server.execute(f"KILL CONNECTION {int(number)}")
            except pymysql.MySQLError as error:
                if error.args[0] != ER.NO_SUCH_THREAD:  # it has ended by itself
                    raise
        return not sessions


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
