"""What the demo replicates: a pgbench database on three nodes that all write it, and the load on them.

pgbench adds the same amounts to an account, a teller and a branch as it writes into its history. Besides, all nodes set the same
few prices, remove them and put them back, which is what conflicts are made of.

https://www.postgresql.org/docs/current/pgbench.html
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from streamer.demo.server import SUPERUSER, Server
from streamer.errors import UsageError
from streamer.model import LSN
from streamer.session import Connection, connect

WRITERS: Final = ("a", "b", "c")
COPY: Final = "d"
DATABASES: Final = (*WRITERS, COPY)
ACCOUNTS: Final = 100_000
CLIENTS: Final = 2
PER_SECOND: Final = 100
"""Transactions that pgbench tries to make on each node, so that the demo leaves a small machine some air."""
WEIGHTS: Final = (9, 1)
"""Of pgbench's own transactions, and of those with prices."""
PRICES: Final = """\
\\set item random(1, 3)
\\set price random(100, 999)
\\set what random(1, 10)
\\if :what = 1
DELETE FROM prices WHERE item = :item;
\\elif :what = 2
INSERT INTO prices VALUES (:item, :price, current_database()) ON CONFLICT DO NOTHING;
\\else
UPDATE prices SET price = :price, set_by = current_database() WHERE item = :item;
\\endif
"""


def create(server: Server, directory: Path) -> None:
    """Make the three databases with the same rows, and an empty one beside them."""
    first, *others = WRITERS
    with connect(SUPERUSER, server.url(SUPERUSER), application="streamer demo") as connection:
        connection.execute(f"CREATE DATABASE {first}".encode())
        server.run("pgbench", "--initialize", "--quiet", server.url(first))
        with session(server, first) as shop:
            shop.execute("CREATE TABLE prices (item integer PRIMARY KEY, price integer NOT NULL, set_by text NOT NULL)")
        for name in others:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {first}".encode())
        connection.execute(f"CREATE DATABASE {COPY}".encode())
    (directory / "prices.sql").write_text(PRICES)


def session(server: Server, database: str) -> Connection:
    """Return a connection to one of the databases."""
    return connect(database, server.url(database), application="streamer demo")


@contextmanager
def load(server: Server, directory: Path, seconds: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run pgbench on all nodes for so many seconds; it is ended with the context. Raises UsageError if it fails."""
    with ExitStack() as stack:
        running = [stack.enter_context(_pgbench(server, database, directory, seconds)) for database in WRITERS]
        yield running


@contextmanager
def _pgbench(server: Server, database: str, directory: Path, seconds: int) -> Iterator[subprocess.Popen[str]]:
    usual, prices = WEIGHTS
    process = server.spawn(
        "pgbench",
        "--no-vacuum",
        f"--builtin=tpcb-like@{usual}",
        f"--file={directory / 'prices.sql'}@{prices}",
        f"--client={CLIENTS}",
        f"--rate={PER_SECOND}",
        f"--time={seconds}",
        server.url(database),
        output=subprocess.DEVNULL,
    )
    try:
        yield process
        if process.poll():
            raise UsageError(f"pgbench of the demo failed with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def last_transactions(server: Server) -> dict[str, LSN]:
    """Commit one more transaction on each node, and return positions that lie before their commits, and after all others."""
    positions = {}
    for number, database in enumerate(WRITERS, 1):
        with session(server, database) as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            connection.execute("UPDATE pgbench_tellers SET tbalance = tbalance WHERE tid = %s", [number])
        positions[database] = LSN.parse(row[0] if row else "0/0")
    return positions
