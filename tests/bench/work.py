"""The jobs of the benchmark. Each is the same for every contender and returns its figures by name.

Every job ends when the source's last row is visible on the target. That is looked for with a cheap query, every 5 ms (in the
latency job without pause); whether the databases are equal in every row is checked afterwards, off the clock. Large statements and
the drain also tell what CPU time was spent meanwhile: on a busy machine it says more than the clock.
The trap: the contender's processes are known only while it runs, and built-in workers begin anew with each start.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from tests.bench.contenders import Contender, Pair
from tests.bench.databases import CLIENTS, ROWS_PER_SCALE, TABLES, moment, must_be_equal, pgbench, settle, tps
from tests.processes import cpu_seconds, with_children

RATE: Final = 200.0  # commits a second in the latency job, if it is not slower than that
PER: Final = 100_000  # rows or transactions that CPU seconds are told for
PROBES: Final = 100  # rows that are looked for before all are counted

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is."""

    #: of pgbench, in the jobs but for the copy
    scale: int = 10
    #: of a large statement
    updated_rows: int = 300_000
    transactions: int = 100_000
    commits: int = 1000
    #: how long pgbench writes while it is replicated
    seconds: int = 8
    #: of pgbench, for the copy
    copied_scale: int = 50

    @property
    def copied_rows(self) -> int:
        return self.copied_scale * ROWS_PER_SCALE


QUICK = Sizes(scale=2, updated_rows=50_000, transactions=10_000, commits=100, seconds=3, copied_scale=5)
SMOKE = Sizes(scale=1, updated_rows=2_000, transactions=1_000, commits=20, seconds=1, copied_scale=1)


class Jobs:
    """The jobs on one pair, whose contender is set up; `begin` or `copy` comes first, because it starts the contender."""

    def __init__(self, pair: Pair, contender: Contender, sizes: Sizes) -> None:
        self._pair = pair
        self._contender = contender
        self._sizes = sizes
        self._source = pair.source.connect()
        self._target = pair.target.connect()
        self._target.execute("SET max_parallel_workers_per_gather = 0")  # looks must not take the processors from the contender

    def close(self) -> None:
        """Disconnect."""
        self._source.close()
        self._target.close()

    def begin(self) -> None:
        """Start the contender, and wait for the copy and the first row after it."""
        self._contender.start()
        self.copied(self._sizes.scale * ROWS_PER_SCALE)
        self._catch_up("begin")

    def copy(self) -> Figures:
        """The initial copy of pgbench_accounts (and some small tables), from the start of the contender; start-up counts."""
        rows = self._sizes.copied_rows
        self.settle()
        before = self.cpu()
        start = time.perf_counter()
        self._contender.start()
        end = self.copied(rows)
        spent = self._spent("copy", before, rows)
        self._catch_up("copy")
        return {"copy": rows / (end - start)} | spent

    def copied(self, rows: int) -> float:
        """Wait for that many accounts; the time at which they were there."""
        # The count only when it is likely to be right: it is slow, and would take the processor from the contender. So would the
        # probes, if they were a join, or had a plan from the time when the table was empty: both would read all of it.
        count, apart = "SELECT count(*) FROM pgbench_accounts", rows // PROBES
        found = f"SELECT 1 FROM pgbench_accounts WHERE aid = i * {apart} LIMIT 1"
        probes = f"SELECT count(*) FROM generate_series(1, {PROBES}) i CROSS JOIN LATERAL ({found}) f"
        whole = f"SELECT CASE WHEN ({probes}) = {PROBES} THEN ({count}) = {rows} ELSE false END".encode()
        look = partial(self._target.execute, whole, prepare=False)
        return self._moment(lambda: look().fetchone() == (True,), "the copy to be whole", pause=0.1)

    def update(self) -> Figures:
        """One large UPDATE: rows/s from its commit, and from its beginning, to its last row on the target."""
        rows = self._sizes.updated_rows
        (before,) = self._source.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", [rows]).fetchone() or (0,)
        look = f"SELECT abalance <> {before} FROM pgbench_accounts WHERE aid = {rows}"
        return self._statement("update", f"UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= {rows}", look)

    def insert(self) -> Figures:
        """One large INSERT, and the DELETE of the same rows: rows/s as for the update."""
        rows, before = self._sizes.updated_rows, self._sizes.scale * ROWS_PER_SCALE
        last = f"SELECT count(*) = {{}} FROM pgbench_accounts WHERE aid = {before + rows}"
        generated = f"generate_series({before} + 1, {before} + {rows})"
        insert = f"INSERT INTO pgbench_accounts SELECT n, 1, 0, 'account ' || n FROM {generated} n"
        figures = self._statement("insert", insert, last.format(1))
        return figures | self._statement("delete", f"DELETE FROM pgbench_accounts WHERE aid > {before}", last.format(0))

    def _statement(self, job: str, statement: str, look: str) -> Figures:
        """Execute a statement of many rows on the source; the figures say how soon `look` is true on the target."""
        rows = self._sizes.updated_rows
        self.settle()
        before = self.cpu()
        start = time.perf_counter()
        self._source.execute(statement.encode())
        committed = time.perf_counter()
        end = self._moment(lambda: self._ask(look), f"the {job} to arrive")
        spent = self._spent(job, before, rows)
        self._catch_up(job)
        return {job: rows / (end - committed), f"{job}_whole": rows / (end - start)} | spent

    def latency(self) -> Figures:
        """Single-row commits, one after the other: milliseconds from the commit's return until the row is seen on the target."""
        self.settle()
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
        self.settle()
        active = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self._contender.slot}'"
        started = time.perf_counter()
        self._contender.start()
        start = self._moment(lambda: self._source.execute(active).fetchone() == (True,), "the slot to be read")
        before = self.cpu()
        end = self._moment(partial(self._has, mark), "the last transaction to arrive")
        transactions = self._sizes.transactions
        return {"drain": transactions / (end - start), "start_up": start - started} | self._spent("drain", before, transactions)

    def busy(self) -> Figures:
        """pgbench on the source while the contender replicates it: transactions/s."""
        self.settle()
        busy = tps(self._pair.source, self._sizes.seconds)
        self._catch_up("busy")
        return {"busy": busy}

    def verify(self) -> None:
        """Fail if any table differs."""
        must_be_equal(self._pair.source, self._pair.target, TABLES)

    # -- what they need ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Leave both servers nothing to do that earlier work has caused."""
        settle((self._pair.source, self._pair.target))

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

    def _moment(self, look: Callable[[], bool], what: str, pause: float = 0.005) -> float:
        """The time at which it was so."""
        return moment(self._contender, look, what, pause)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: of the contender's own processes, and of these and both servers, but for our sessions there."""
        own = set(self._contender.processes())
        postmasters = {database.server.pid for database in (self._pair.source, self._pair.target)}
        sessions = {connection.info.backend_pid for connection in (self._source, self._target)}
        running = own.union(*map(with_children, postmasters)) - postmasters - sessions
        ended = sum(cpu_seconds(pid, ended_children=True) for pid in postmasters)
        return sum(map(cpu_seconds, own)), ended + sum(map(cpu_seconds, running))

    def _spent(self, job: str, before: tuple[float, float], amount: int) -> Figures:
        """The CPU seconds that `amount` of rows or transactions have cost since `before`, for each `PER` of them."""
        own, whole = ((now - then) / amount * PER for now, then in zip(self.cpu(), before, strict=True))
        return {f"{job}_cpu": own, f"{job}_cpu_all": whole}

    def _run_pgbench(self) -> None:
        each = str(self._sizes.transactions // CLIENTS)
        pgbench(self._pair.source, "-n", "-c", str(CLIENTS), "-t", each, options="-c synchronous_commit=off")
