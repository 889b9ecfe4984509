"""The file of an SQLite node, as other programs and people leave it: how it is opened, and what is said of trouble with it.

The file is in WAL mode, so that readers and the daemon never wait for each other; another writer is waited for only so long. A WAL
that a reader keeps from being emptied is emptied as soon as there is a gap.

The trap: SQLite goes on writing to a file that was removed or replaced, and all of it would be lost. So the file at the path is
compared with the one that was opened, before and after each transaction.

https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from streamer.errors import ConnectError, StreamerError, TargetError

WAL_BYTES: Final = 64 << 20
"""How large the WAL may be: a huge transaction makes it larger for a while, and so does a reader."""
LOOK_SECONDS: Final = 10.0
"""How often it is looked at."""
GAP_SECONDS: Final = 1.0
"""How long emptying it may wait for readers; meanwhile nobody can write."""

_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA cache_size = -65536",  # KiB
    "PRAGMA wal_autocheckpoint = 4000",  # pages
    f"PRAGMA journal_size_limit = {WAL_BYTES}",
)
_AGAIN: Final = "streamer tries again by itself"


class DatabaseFile:
    """The file at `path`; the locks of other programs are waited for `busy_timeout` seconds."""

    def __init__(self, node: str, path: Path, busy_timeout: float) -> None:
        self._node = node
        self.path = path
        self._timeout = busy_timeout
        self._opened: os.stat_result | None = None
        self._look_at = 0.0
        self._told = False

    def __str__(self) -> str:
        return f'node "{self._node}": file "{self.path}"'

    def connect(self) -> sqlite3.Connection:
        """Return a connection, to the same file as before. A missing file is not made: that is for `setup`, which knows its tables.

        Raises ConnectError, sqlite3.Error.
        """
        if self._opened is None:
            self._opened = self._stat()
        self.require_unmoved()
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    def _stat(self) -> os.stat_result:
        try:
            return self.path.stat()
        except FileNotFoundError:
            parent = self.path.parent
            if not parent.is_dir():
                raise ConnectError(f'node "{self._node}": directory "{parent}" does not exist', f"mkdir -p {parent}") from None
            raise ConnectError(f"{self} does not exist", "put it back; or, for a new one, run: streamer setup") from None
        except OSError as error:
            raise ConnectError(f"{self} cannot be reached: {error.strerror}", _RIGHTS) from error

    def require_unmoved(self) -> None:
        """Raise ConnectError unless the file at the path is the one that was opened."""
        if self._opened is None or not os.path.samestat(self._stat(), self._opened):
            raise ConnectError(f"{self} was removed or replaced while it was open", f"put it back; {_AGAIN}")

    def empty_wal(self, connection: sqlite3.Connection) -> None:
        """Empty the WAL, if it has grown large and no reader is in the way; outside of transactions. Raises sqlite3.Error."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        size = self._wal_size()
        if size <= WAL_BYTES:
            self._told = False
            return
        connection.execute(f"PRAGMA busy_timeout = {GAP_SECONDS * 1000:.0f}")
        (held, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {self._timeout * 1000:.0f}")
        if held and not self._told:
            structlog.get_logger().warning(
                "sqlite_wal_held_back",
                target=self._node,
                file=f"{self.path}-wal",
                bytes=size,
                reason="a program reads an old state of the file, and the WAL grows until it ends",
                remedy=f"end it; see: fuser -v {self.path}",
            )
        self._told = bool(held)

    def _wal_size(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Explain what SQLite says of the file: raises ConnectError and TargetError in place of sqlite3.Error."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> StreamerError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return TargetError(
                f"{self} is locked by another program for more than {self._timeout:g} s",
                f"let it finish or end it; see: fuser -v {self.path}; {_AGAIN}",
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
            return ConnectError(f"{self} cannot be written: {error}", _RIGHTS)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return ConnectError(f"{self}: {error}", f"correct nodes.{self._node}.url, or restore the file; {_AGAIN}")
        if code == sqlite3.SQLITE_FULL:
            return TargetError(f"{self}: {error}", f"make room; {_AGAIN}")
        if code == sqlite3.SQLITE_IOERR:
            return TargetError(
                f"{self}: {error}", f"look at the disk, its quota, and the limit on file sizes (ulimit -f); {_AGAIN}"
            )
        return TargetError(f"{self}: {error}", f"see what it is in the way of; {_AGAIN}")


_RIGHTS: Final = "give the user that runs streamer the right to write the file and its directory"
