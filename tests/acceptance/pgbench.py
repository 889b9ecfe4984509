"""pgbench on a database, as the superuser, and queries that tell whether two databases are equal afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import Database
from tests.waiting import wait_for_equal

HISTORY = "SELECT count(*), sum(delta), sum(id), min(id), max(id) FROM pgbench_history"
BALANCES = [
    "SELECT count(*), sum(abalance), sum(aid * abalance) FROM pgbench_accounts",
    "SELECT tid, bid, tbalance FROM pgbench_tellers ORDER BY tid",
    "SELECT bid, bbalance FROM pgbench_branches ORDER BY bid",
    "SELECT id, tid, bid, aid, delta FROM pgbench_history ORDER BY id",
    HISTORY,
]

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND datname = current_database()"


def fill_with_pgbench(database: Database) -> None:
    """Make pgbench's tables, with a key for the history."""
    subprocess.run([database.server.bin_dir / "pgbench", "-i", "-q", "-s", "1", database.url], check=True, capture_output=True)
    database.execute("ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY")


@contextmanager
def pgbench(database: Database, *options: str) -> Iterator[None]:
    """Run pgbench while the context lasts."""
    load = subprocess.Popen(
        [database.server.bin_dir / "pgbench", "-n", "-c", "2", "-T", "100", *options, database.url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        load.terminate()
        load.wait(10)
        wait_for_equal(lambda: database.query(SESSIONS), [(0,)], "pgbench's last transactions to be over")
