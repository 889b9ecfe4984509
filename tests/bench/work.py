"""The four jobs of the benchmark. Each is the same for every contender and returns its figures by name.

Every job ends when the source's last row is visible on the target. That is looked for with a cheap query, every millisecond (in the
latency job without pause); whether the databases are equal in every row is checked afterwards, off the clock.
The trap: what a job leaves to the servers (dirty pages, dead rows, a checkpoint due) is paid for by the next one. So the servers
settle before each job, autovacuum is off, and no checkpoint comes by itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.bench.contenders import Contender, Pair
from tests.servers import Database
from tests.waiting import wait_for_equal

MARK = "CREATE TABLE mark (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job text NOT NULL)"
ROWS_PER_SCALE = 100_000
PATIENCE = 120.0  # seconds for one job
RATE = 150.0  # commits a second in the latency job, if it is not slower than that
CLIENTS = 4  # of pgbench
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "mark")

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is."""

    scale: int = 10
    updated_rows: int = 300_000
    transactions: int = 100_000
    commits: int = 300

    @property
    def copied_rows(self) -> int:
        return self.scale * ROWS_PER_SCALE


QUICK = Sizes(scale=2, updated_rows=50_000, transactions=10_000, commits=100)


class Jobs:
    """The jobs on one pair, whose contender is set up; `copy` comes first, because it starts the contender."""

    def __init__(self, pair: Pair, contender: Contender, sizes: Sizes) -> None:
        self._pair = pair
        self._contender = contender
        self._sizes = sizes
        self._source = pair.source.connect()
        self._target = pair.target.connect()

    def close(self) -> None:
        """Disconnect."""
        self._source.close()
        self._target.close()

    def copy(self) -> Figures:
        """The initial copy of pgbench_accounts (and some small tables), from the start of the contender; start-up counts."""
        rows = self._sizes.copied_rows
        # the count only when the last row is there: it is slow, and would take the processor from the contender
        whole = (
            f"SELECT CASE WHEN EXISTS (SELECT FROM pgbench_accounts WHERE aid = {rows}) "
            f"THEN (SELECT count(*) FROM pgbench_accounts) = {rows} ELSE false END"
        )
        self._settle()
        start = time.perf_counter()
        self._contender.start()
        end = self._moment(lambda: self._ask(whole), "the copy to be whole")
        self._catch_up("copy")
        return {"copy": rows / (end - start)}

    def update(self) -> Figures:
        """One large UPDATE: rows/s from its commit, and from its beginning, to its last row on the target."""
        rows = self._sizes.updated_rows
        self._settle()
        (before,) = self._source.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", [rows]).fetchone() or (0,)
        look = f"SELECT abalance <> {before} FROM pgbench_accounts WHERE aid = {rows}"
        start = time.perf_counter()
        self._source.execute("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= %s", [rows])
        committed = time.perf_counter()
        end = self._moment(lambda: self._ask(look), "the update to arrive")
        self._catch_up("update")
        return {"update": rows / (end - committed), "update_whole": rows / (end - start)}

    def latency(self) -> Figures:
        """Single-row commits, one after the other: milliseconds from the commit's return until the row is seen on the target."""
        self._settle()
        took = []
        due = time.perf_counter()
        for _ in range(self._sizes.commits):
            time.sleep(max(0.0, due - time.perf_counter()))  # paces the load
            mark = self._mark("latency")
            committed = time.perf_counter()
            self._moment(partial(self._has, mark), "a row to arrive", pause=0)
            took.append(time.perf_counter() - committed)
            due = max(due + 1 / RATE, committed)
        median, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
        return {"latency_median": median * 1000, "latency_p99": p99 * 1000}

    def drain(self) -> Figures:
        """pgbench transactions made while the contender was stopped: transactions/s from the first read of its slot to the last."""
        self._contender.stop()
        self._run_pgbench()
        mark = self._mark("drain")
        self._settle()
        active = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self._contender.slot}'"
        started = time.perf_counter()
        self._contender.start()
        start = self._moment(lambda: self._source.execute(active).fetchone() == (True,), "the slot to be read")
        end = self._moment(partial(self._has, mark), "the last transaction to arrive")
        return {"drain": self._sizes.transactions / (end - start), "start_up": start - started}

    def verify(self) -> None:
        """Fail if any table differs."""
        for table in TABLES:
            rows = f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t"
            expected = self._pair.source.query(rows)
            wait_for_equal(partial(self._pair.target.query, rows), expected, f"{table} to be equal")

    # -- what they need ----------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        for database in (self._pair.source, self._pair.target):
            with database.connect() as connection:
                connection.execute("VACUUM (ANALYZE)")
                connection.execute("CHECKPOINT")

    def _catch_up(self, job: str) -> None:
        mark = self._mark(job)
        self._moment(partial(self._has, mark), "the contender to have caught up")

    def _mark(self, job: str) -> int:
        """Commit one row on the source and return its number: once it is seen on the target, so is all before it."""
        (mark,) = self._source.execute("INSERT INTO mark (job) VALUES (%s) RETURNING id", [job], prepare=True).fetchone() or (0,)
        return int(mark)

    def _has(self, mark: int) -> bool:
        return self._target.execute("SELECT FROM mark WHERE id = %s", [mark], prepare=True).fetchone() is not None

    def _ask(self, question: str) -> bool:
        return self._target.execute(question.encode()).fetchone() == (True,)

    def _moment(self, look: Callable[[], bool], what: str, pause: float = 0.001) -> float:
        """Look until it is so; return the time of the look that found it."""
        deadline = time.perf_counter() + PATIENCE
        while (moment := time.perf_counter()) < deadline:
            if look():
                return moment
            self._contender.check()
            time.sleep(pause)
        raise TimeoutError(f"waited {PATIENCE:g} s for {what}; logged last: {self._contender.log[-2000:]}")

    def _run_pgbench(self) -> None:
        each = str(self._sizes.transactions // CLIENTS)
        pgbench(self._pair.source, "-n", "-c", str(CLIENTS), "-t", each, options="-c synchronous_commit=off")


def make_template(database: Database, steps: str, scale: int) -> None:
    """Make the tables in `database` with the initialization steps of pgbench."""
    pgbench(database, "-i", "-q", "-I", steps, "-s", str(scale))
    database.execute(MARK)
    if "g" in steps:  # rows are generated
        database.execute("INSERT INTO mark (job) VALUES ('none')")


def pgbench(database: Database, *arguments: str, options: str = "") -> None:
    """Run pgbench on the database; `options` are settings for its sessions."""
    command = [str(database.server.bin_dir / "pgbench"), *arguments, database.url]
    done = subprocess.run(command, env=os.environ | {"PGOPTIONS": options}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench failed: {done.stderr}")
