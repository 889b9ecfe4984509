"""What the demo replicates: a pgbench database, and the load on it.

https://www.postgresql.org/docs/current/pgbench.html
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from streamer.demo.server import SUPERUSER, Server
from streamer.errors import UsageError
from streamer.model import LSN
from streamer.session import Connection, connect

SOURCE: Final = "shop"
TARGET: Final = "shop_copy"
SCALE: Final = 2
"""In hundreds of thousands of accounts."""
CLIENTS: Final = 4
PER_SECOND: Final = 1000
"""Transactions that pgbench tries to make, so that the demo leaves a small machine some air."""


def create(server: Server) -> None:
    """Make the database with its rows, and an empty one beside it."""
    with connect(SUPERUSER, server.url(SUPERUSER), application="streamer demo") as connection:
        for name in (SOURCE, TARGET):
            connection.execute(f"CREATE DATABASE {name}".encode())
    server.run("pgbench", "--initialize", "--quiet", f"--scale={SCALE}", server.url(SOURCE))
    with session(server, SOURCE) as connection:
        # so that a row can be told from another one like it, also by the comparison at the end
        connection.execute("ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY")


def session(server: Server, database: str) -> Connection:
    """Return a connection to one of the two databases."""
    return connect(database, server.url(database), application="streamer demo")


@contextmanager
def load(server: Server, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Run pgbench on the database for so many seconds; it is ended with the context. Raises UsageError if it fails."""
    process = server.spawn(
        "pgbench",
        "--no-vacuum",
        f"--client={CLIENTS}",
        f"--rate={PER_SECOND}",
        f"--time={seconds}",
        server.url(SOURCE),
        output=subprocess.DEVNULL,
    )
    try:
        yield process
        if process.poll():
            raise UsageError(f"pgbench of the demo failed with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def last_transaction(server: Server) -> LSN:
    """Commit one more transaction, and return a position that lies before its commit, and after all others."""
    with session(server, SOURCE) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        connection.execute("UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1")
    return LSN.parse(row[0] if row else "0/0")
