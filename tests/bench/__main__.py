"""`make bench`: PostgreSQL's built-in subscription and streamer side by side. docs/benchmarks.md tells how it is measured.

Every round (one run of one contender) has new databases from the same templates on the same two servers. The contenders take
turns, so that a noisy minute of the machine does not fall on one of them alone; a small round of each warms the machine up.

Some jobs are comparisons of their own: `fan-out`, three targets against one; `growth`, larger and larger work; `foreign`, MariaDB
and SQLite as targets, and their drivers; `triggers`, Bucardo and Londiste; `verify`, sums of hashes without it; and `ranges`, a
copy in ranges and of the whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from tests.bench import fanout, foreign, growth, ranges, triggers, verify
from tests.bench.contenders import BUILT_IN, NAMES, Pair, make
from tests.bench.databases import made_from, make_template
from tests.bench.report import CPU_FIGURES, FIGURES, Report, Round, where
from tests.bench.work import QUICK, SMOKE, Figures, Jobs, Sizes
from tests.binaries import debian_bin_dirs
from tests.servers import PostgresServer

SETTINGS: Final = {
    "fsync": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # together with the next: no checkpoint but those that the benchmark asks for
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "logical_decoding_work_mem": "256MB",  # large transactions are decoded in memory, whoever reads them
    "wal_sender_timeout": "60s",
    "wal_retrieve_retry_interval": "100ms",  # else the built-in subscription may wait 5 s before it starts a worker
}
JOBS: Final = ("update", "insert", "latency", "busy", "drain")
OWN: Final = ("copy", "ranges", "fan-out", "growth", "foreign", "triggers", "verify")
COMPARED: Final = (BUILT_IN, "pgoutput", "wal2json")
SIZES: Final = {"full": Sizes(), "quick": QUICK, "smoke": SMOKE}
TEMPLATE: Final = "bench_template"
COPY_TEMPLATE: Final = "bench_copy_template"
RANGES_TEMPLATE: Final = "bench_ranges_template"
FAN_OUT_TEMPLATE: Final = "bench_fan_out_template"
VERIFIED_ROWS: Final = 3_000_000
Results: TypeAlias = tuple[str, dict[str, Any]]
"""A table in Markdown, and all figures for JSON."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is to be done, on two servers of the same version."""

    source: PostgresServer
    target: PostgresServer
    #: one of SIZES
    size: str
    runs: int
    only: Sequence[str]
    contenders: Sequence[str]

    @property
    def sizes(self) -> Sizes:
        """How much work there is."""
        return SIZES[self.size]

    def make_templates(self, name: str, scale: int) -> None:
        """Make a template database on each server: the source's full, the target's empty."""
        for server, steps in ((self.source, "dtgvp"), (self.target, "dtp")):
            make_template(server.create_database(name), steps, scale)

    def rounds(self, work: Callable[[str], Figures]) -> list[Round]:
        """Have each contender, in turn, do the work; return the figures that are wanted."""
        wanted = {figure.name for figure in (*FIGURES, *CPU_FIGURES) if figure.job in self.only}
        found = []
        for run in range(1, self.runs + 1):
            for name in self.contenders:
                figures = {key: value for key, value in work(name).items() if key in wanted}
                found.append(Round(name, run, figures))
                print(f"run {run}, {name}: " + ", ".join(f"{k} {v:,.2f}" for k, v in figures.items()), file=sys.stderr)
        return found


def main() -> int:
    """Run it; 0 if it ran, whatever the figures."""
    options = _options()
    if not debian_bin_dirs():
        print("PostgreSQL with wal2json is missing: apt-get install postgresql-15 postgresql-15-wal2json", file=sys.stderr)
        return 1
    parts = {"jobs": _jobs, "copy": _copy, "ranges": _ranges, "fan-out": _fan_out, "growth": _growth}
    parts |= {"foreign": _foreign, "triggers": _triggers, "verify": _verify}
    wanted = {"jobs" if name in JOBS else name for name in options.only}
    results: dict[str, dict[str, Any]] = {}
    tables = []
    with ExitStack() as stack:
        source, target = (stack.enter_context(closing(PostgresServer(debian_bin_dirs()[0], SETTINGS))) for _ in range(2))
        for server in (source, target):
            server.start()
        machine = where(f"PostgreSQL {source.version // 10000}.{source.version % 10000}")
        bench = Bench(source, target, options.sizes, options.runs, options.only, options.contenders)
        for name, part in parts.items():
            if name not in wanted:
                continue
            table, document = part(bench)
            tables.append(table)
            results[name] = {"where": machine, **document}
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    print("\n" + "\n\n".join(tables))
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(before | results, indent=1) + "\n")
    return 0


def _jobs(bench: Bench) -> Results:
    """The jobs on one pair of databases, by all contenders."""
    bench.make_templates(TEMPLATE, bench.sizes.scale)

    def work(name: str, sizes: Sizes = bench.sizes) -> Figures:
        with _pair(bench, TEMPLATE) as pair, _jobs_of(name, pair, sizes) as jobs:
            jobs.begin()
            figures: Figures = {}
            for job in (jobs.update, jobs.insert, jobs.latency, jobs.busy, jobs.drain):
                if job.__name__ in bench.only:
                    figures |= job()
            jobs.verify()
            return figures

    if bench.size != "smoke":
        for name in bench.contenders:
            work(name, replace(SMOKE, scale=bench.sizes.scale))
    report = Report(bench.sizes, bench.rounds(work))
    return report.tables(), report.document()


def _copy(bench: Bench) -> Results:
    """The initial copy, by all contenders."""
    bench.make_templates(COPY_TEMPLATE, bench.sizes.copied_scale)

    def work(name: str) -> Figures:
        with _pair(bench, COPY_TEMPLATE) as pair, _jobs_of(name, pair, bench.sizes) as jobs:
            figures = jobs.copy()
            jobs.verify()
            return figures

    report = Report(bench.sizes, bench.rounds(work))
    return report.tables(), report.document()


def _ranges(bench: Bench) -> Results:
    """What copying in ranges costs."""
    bench.make_templates(RANGES_TEMPLATE, bench.sizes.copied_scale)
    results = ranges.measure(lambda: _pair(bench, RANGES_TEMPLATE), bench.sizes, bench.runs)
    return ranges.table(results, bench.sizes), {"results": ranges.document(results)}


def _fan_out(bench: Bench) -> Results:
    bench.make_templates(FAN_OUT_TEMPLATE, bench.sizes.scale)
    results = fanout.measure(bench.source, bench.target, FAN_OUT_TEMPLATE, bench.sizes.updated_rows, bench.runs)
    return fanout.table(results), {"results": fanout.document(results)}


def _growth(bench: Bench) -> Results:
    points = growth.measure(bench.source, bench.target, growth.SMOKE if bench.size == "smoke" else growth.FULL, bench.runs)
    return growth.table(points), {"points": growth.document(points)}


def _foreign(bench: Bench) -> Results:
    results = list(foreign.measure(bench.source, bench.sizes.updated_rows, bench.runs))
    return foreign.table(results), {"results": foreign.document(results)}


def _triggers(bench: Bench) -> Results:
    sizes = triggers.WORK if bench.size == "full" else triggers.QUICK_WORK
    results = triggers.measure(bench.source, bench.target, sizes, bench.runs)
    return triggers.table(results, sizes), {"results": triggers.document(results)}


def _verify(bench: Bench) -> Results:
    rows = VERIFIED_ROWS // (1 if bench.size == "full" else 10)
    results = verify.measure(bench.source, bench.target, rows, bench.runs)
    return verify.table(results), {"results": verify.document(results)}


@contextmanager
def _pair(bench: Bench, template: str) -> Iterator[Pair]:
    with made_from(template, bench.source) as source, made_from(template, bench.target) as target:
        yield Pair(source, target)


@contextmanager
def _jobs_of(name: str, pair: Pair, sizes: Sizes) -> Iterator[Jobs]:
    with closing(make(name, pair)) as contender, closing(Jobs(pair, contender, sizes)) as jobs:
        yield jobs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="rounds of each contender (5; quick and smoke: 1)")
    parser.add_argument("--sizes", choices=SIZES, default="full", help="how much work: quick takes minutes, smoke one")
    known = (*JOBS, *OWN)
    parser.add_argument("--only", type=_list_of(known), default=list(known), metavar="JOBS", help=f"some of {','.join(known)}")
    parser.add_argument(
        "--contenders", type=_list_of(NAMES), default=list(COMPARED), metavar="NAMES", help=f"some of {','.join(NAMES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single figure there; what is not run stays in it")
    options = parser.parse_args()
    options.runs = options.runs or (5 if options.sizes == "full" else 1)
    return options


def _list_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
