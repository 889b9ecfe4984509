"""One source to three targets against one: a large UPDATE, from its commit until every target shows its last row.

The source is read and decoded once, however many targets there are; each has a writer of its own. The trap: all targets are
databases of one server, so on a machine with few cores they share them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Final

from tests.bench.contenders import Daemon
from tests.bench.databases import TABLES, made_from, moment, must_be_equal, settle
from tests.bench.report import markdown, spread
from tests.processes import cpu_seconds
from tests.servers import Database, PostgresServer

TARGETS: Final = (1, 3)
GOAL: Final = "< 1.8"


@dataclass(frozen=True, slots=True)
class Result:
    """One run: the seconds that it took, and the CPU seconds of the daemon."""

    targets: int
    run: int
    seconds: float
    cpu: float


def measure(source: PostgresServer, target: PostgresServer, template: str, rows: int, runs: int) -> list[Result]:
    """Write so many rows to one target and to three, in turn."""
    results = []
    for run in range(1, runs + 1):
        for number in TARGETS:
            with ExitStack() as stack:
                a = stack.enter_context(made_from(template, source))
                targets = [stack.enter_context(made_from(template, target, f"bench_{n}")) for n in range(number)]
                seconds, cpu = _update(a, targets, rows)
            results.append(Result(number, run, seconds, cpu))
            print(f"run {run}, {number} targets: {seconds:.2f} s", file=sys.stderr)
    return results


def _update(a: Database, targets: Sequence[Database], rows: int) -> tuple[float, float]:
    urls = {"a": a.url} | {database.name: database.url for database in targets}
    roles = {"sources": ["a"], "targets": [database.name for database in targets]}
    with closing(Daemon(urls, roles, "pgoutput")) as daemon, ExitStack() as stack:
        sessions = [stack.enter_context(closing(database.connect())) for database in targets]

        def everywhere(query: str) -> bool:
            return all(session.execute(query.encode()).fetchone() == (True,) for session in sessions)

        daemon.start()
        ((whole,),) = a.query("SELECT count(*) FROM pgbench_accounts")
        moment(daemon, partial(everywhere, f"SELECT count(*) = {whole} FROM pgbench_accounts"), "the copies", pause=0.1)
        a.execute("INSERT INTO mark (job) VALUES ('begin')")
        moment(daemon, partial(everywhere, "SELECT count(*) = 2 FROM mark"), "the stream to begin")
        settle([a, *targets])
        (pid,) = daemon.processes()
        spent = cpu_seconds(pid)
        a.execute(f"UPDATE pgbench_accounts SET abalance = 1 WHERE aid <= {rows}")
        committed = perf_counter()
        arrived = f"SELECT abalance = 1 FROM pgbench_accounts WHERE aid = {rows}"
        end = moment(daemon, partial(everywhere, arrived), "the update to arrive everywhere")
        spent = cpu_seconds(pid) - spent
        for database in targets:
            must_be_equal(a, database, TABLES)
        return end - committed, spent


def table(results: Sequence[Result]) -> str:
    """The results in Markdown: median (lowest–highest)."""
    one, three = ([r for r in results if r.targets == number] for number in TARGETS)
    rows = []
    for title, name in (("UPDATE, from commit (s)", "seconds"), ("CPU time of the daemon (s)", "cpu")):
        values = [[float(getattr(r, name)) for r in own] for own in (one, three)]
        ratio = statistics.median(values[1]) / statistics.median(values[0])
        rows.append([title, *(spread(v, ".2f") for v in values), f"{ratio:.2f}", GOAL if name == "seconds" else ""])
    return markdown(["", *(f"{n} target{'s' * (n > 1)}" for n in TARGETS), "ratio", "goal"], rows)


def document(results: Sequence[Result]) -> list[dict[str, float]]:
    """Every single figure, for JSON."""
    return [asdict(r) for r in results]
