"""`make bench`: PostgreSQL's built-in subscription and streamer side by side. docs/benchmarks.md tells how it is measured.

The job `foreign` is another comparison: MariaDB and SQLite as targets, and their drivers (foreign.py).

Every round (one run of one contender) has new databases from the same templates on the same two servers. The contenders take
turns, so that a noisy minute of the machine does not fall on one of them alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.bench import foreign
from tests.bench.contenders import NAMES, Pair, make
from tests.bench.report import FIGURES, Report, Round
from tests.bench.work import QUICK, Jobs, Sizes, make_template
from tests.binaries import debian_bin_dirs
from tests.servers import Database, PostgresServer

SETTINGS = {
    "fsync": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # together with the next: no checkpoint but those that the benchmark asks for
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "wal_sender_timeout": "60s",
    "wal_retrieve_retry_interval": "100ms",  # else the built-in subscription may wait 5 s before it starts a worker
}
JOBS = ("update", "drain", "latency", "copy", "foreign")
TEMPLATE = "bench_template"


def main() -> int:
    """Run it; 0 if it ran, whatever the figures."""
    options = _options()
    if not debian_bin_dirs():
        print("PostgreSQL with wal2json is missing: apt-get install postgresql-15 postgresql-15-wal2json", file=sys.stderr)
        return 1
    sizes = QUICK if options.quick else Sizes()
    rounds: list[Round] = []
    others: list[foreign.Result] = []
    with _servers(sizes) as (source, target):
        for run in range(1, options.runs + 1 if options.only != ["foreign"] else 1):
            for name in options.contenders:
                figures = _round(source, target, name, sizes, options.only)
                rounds.append(Round(name, run, figures))
                print(f"run {run}, {name}: " + ", ".join(f"{k} {v:,.2f}" for k, v in figures.items()), file=sys.stderr)
        shown = ".".join(map(str, divmod(source.version, 10000)))
        report = Report(f"PostgreSQL {shown}", sizes, rounds)
        if "foreign" in options.only:
            others += foreign.measure(source, sizes.updated_rows, options.runs)
    print(report.machine())
    for table in ([report.table()] if rounds else []) + ([foreign.table(others)] if others else []):
        print(f"\n{table}")
    if options.json:
        options.json.write_text(json.dumps(report.document() | {"foreign": foreign.document(others)}, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="rounds of each contender (3, quick: 1)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run: about a minute")
    parser.add_argument("--only", type=_list_of(JOBS), default=list(JOBS), metavar="JOBS", help=f"some of {','.join(JOBS)}")
    parser.add_argument(
        "--contenders", type=_list_of(NAMES), default=list(NAMES), metavar="NAMES", help=f"some of {','.join(NAMES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single figure there")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 3)
    return options


def _list_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


@contextmanager
def _servers(sizes: Sizes) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Two servers of the same version with a template database each: the source's full, the target's empty."""
    with ExitStack() as stack:
        servers = []
        for steps in ("dtgvp", "dtp"):
            server = stack.enter_context(closing(PostgresServer(debian_bin_dirs()[0], SETTINGS)))
            server.start()
            make_template(server.create_database(TEMPLATE), steps, sizes.scale)
            servers.append(server)
        yield servers[0], servers[1]


def _round(source: PostgresServer, target: PostgresServer, name: str, sizes: Sizes, only: Sequence[str]) -> dict[str, float]:
    """Let one contender do the jobs on new databases; return the figures that are wanted."""
    with _database(source) as a, _database(target) as b:
        pair = Pair(a, b)
        with closing(make(name, pair)) as contender, closing(Jobs(pair, contender, sizes)) as jobs:
            figures = jobs.copy()
            for job in (jobs.update, jobs.latency, jobs.drain):
                if job.__name__ in only:
                    figures |= job()
            jobs.verify()
    wanted = {figure.name for figure in FIGURES if figure.job in only}
    return {key: value for key, value in figures.items() if key in wanted}


@contextmanager
def _database(server: PostgresServer) -> Iterator[Database]:
    database = Database(server, "bench")
    server.execute(f"CREATE DATABASE bench TEMPLATE {TEMPLATE}")
    try:
        yield database
    finally:
        database.drop()


if __name__ == "__main__":
    sys.exit(main())
