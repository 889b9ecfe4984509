"""`streamer verify` beside the plainest way to compare two tables: a sum of hashes on both servers at once.

Both tables are equal, and nobody writes them. The trap: servers put several processes to work on a large table, so on a machine
with few cores the two statements share them with each other.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

import psycopg

from streamer.admin.verify import verify, wanted
from streamer.verify.tables import equal
from tests.configs import make_config
from tests.servers import Database, PostgresServer

PLAIN: Final = "SELECT count(*), sum(hashtext(t::text)) FROM t"
GOAL: Final = "≥ 0.5, or 1,000,000 rows/s"
_TABLE: Final = """
CREATE TABLE t AS SELECT i AS id, i / 100 AS bid, 0 AS balance, repeat('x', 40) AS filler,
       '2020-01-01'::timestamptz + i * interval '1 s' AS at, (i / 7.0)::numeric(12, 2) AS n
FROM generate_series(1, {rows}) AS i;
ALTER TABLE t ADD PRIMARY KEY (id)
"""


@dataclass(frozen=True, slots=True)
class Result:
    """One run: rows/s."""

    run: int
    plain: float
    verify: float


def measure(source: PostgresServer, target: PostgresServer, rows: int, runs: int) -> list[Result]:
    """Compare a table of so many rows in both ways, in turn."""
    with ExitStack() as stack:
        databases = [server.create_database("bench_verify") for server in (source, target)]
        for database in databases:
            stack.callback(database.drop)
            _fill(database, rows)
        config = make_config({"a": databases[0].url, "b": databases[1].url})

        def by_streamer() -> None:
            if not equal(list(verify(config, wanted("shop", (), None, 0, 1)))):
                raise RuntimeError("verify finds differences between equal tables")

        results = []
        for run in range(1, runs + 1):
            results.append(Result(run, rows / _seconds(lambda: _plainly(databases)), rows / _seconds(by_streamer)))
            print(f"run {run}, verify: {results[-1].verify:,.0f} rows/s, plain sums: {results[-1].plain:,.0f}", file=sys.stderr)
        return results


def _fill(database: Database, rows: int) -> None:
    for statement in _TABLE.format(rows=rows).split(";\n"):
        database.execute(statement)
    with closing(psycopg.connect(database.url, autocommit=True)) as connection:
        connection.execute("VACUUM (ANALYZE, FREEZE) t")


def _plainly(databases: Sequence[Database]) -> None:
    with ThreadPoolExecutor(len(databases)) as pool:
        sums = list(pool.map(lambda database: database.query(PLAIN), databases))
    if sums[0] != sums[1]:
        raise RuntimeError("the tables are not equal")


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def table(results: Sequence[Result]) -> str:
    """The medians in Markdown."""
    plain, ours = (statistics.median(getattr(r, name) for r in results) for name in ("plain", "verify"))
    ratio = statistics.median(r.verify / r.plain for r in results)
    return "\n".join(
        (
            "| | plain sums on both sides | streamer verify | ratio | goal |",
            "| --- | --- | --- | --- | --- |",
            f"| comparing equal tables (rows/s) | {plain:,.0f} | {ours:,.0f} | {ratio:.2f} | {GOAL} |",
        )
    )


def document(results: Sequence[Result]) -> list[dict[str, float]]:
    """Every single figure, for JSON."""
    return [{"run": r.run, "plain": r.plain, "verify": r.verify} for r in results]
