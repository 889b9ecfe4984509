"""The databases of the benchmark: made, settled before a job, looked at until something is so, compared afterwards; and pgbench.

The trap: what a job leaves to the servers (dirty pages, dead rows, a checkpoint due) is paid for by the next one. So they settle
before each job, autovacuum is off, and no checkpoint comes by itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from tests.bench.contenders import Contender
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for_equal

MARK: Final = "CREATE TABLE mark (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job text NOT NULL)"
ROWS_PER_SCALE: Final = 100_000
TABLES: Final = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "mark")
PATIENCE: Final = 900.0  # seconds for one job; the slowest contender needs some minutes for the largest
CLIENTS: Final = 4  # of pgbench


def make_template(database: Database, steps: str, scale: int) -> None:
    """Make the tables in `database` with the initialization steps of pgbench."""
    pgbench(database, "-i", "-q", "-I", steps, "-s", str(scale))
    database.execute(MARK)
    if "g" in steps:  # rows are generated
        database.execute("INSERT INTO mark (job) VALUES ('none')")


@contextmanager
def made_from(template: str, server: PostgresServer, name: str = "bench") -> Iterator[Database]:
    """A database that is gone afterwards."""
    database = Database(server, name)
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield database
    finally:
        database.drop()


def settle(databases: Sequence[Database]) -> None:
    """Leave the servers nothing to do that earlier work has caused."""
    for database in databases:
        with database.connect() as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")


def moment(contender: Contender, look: Callable[[], bool], what: str, pause: float = 0.005) -> float:
    """Look until it is so; return the time of the look that found it. Raises TimeoutError, RuntimeError.

    The trap: what the looks cost, a contender that uses both processors lacks. A thousand a second are a sixth of one.
    """
    deadline = time.perf_counter() + PATIENCE
    while (now := time.perf_counter()) < deadline:
        if look():
            return now
        contender.check()
        time.sleep(pause)
    raise TimeoutError(f"waited {PATIENCE:g} s for {what}; logged last: {contender.log[-2000:]}")


def must_be_equal(source: Database, target: Database, tables: Sequence[str]) -> None:
    """Fail if any of the tables differs."""
    for table in tables:
        rows = f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t"
        wait_for_equal(partial(target.query, rows), source.query(rows), f"{table} to be equal")


def pgbench(database: Database, *arguments: str, options: str = "") -> str:
    """Run pgbench on the database and return what it prints; `options` are settings for its sessions."""
    command = [str(database.server.bin_dir / "pgbench"), *arguments, database.url]
    done = subprocess.run(command, env=os.environ | {"PGOPTIONS": options}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench failed: {done.stderr}")
    return done.stdout


def tps(database: Database, seconds: int) -> float:
    """Run pgbench for so long and return its transactions/s."""
    printed = pgbench(database, "-n", "-c", str(CLIENTS), "-T", str(seconds))
    found = re.search(r"^tps = ([\d.]+)", printed, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pgbench told no rate: {printed}")
    return float(found[1])
