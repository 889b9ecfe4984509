"""What it costs to copy a large table in ranges: CPU seconds of the daemon and both servers, beside those of one copy of the whole.

All are streamer with the same rows, and take turns; only `copy_range_rows` and `copy_jobs` differ. Counted is from the beginning of
the copy on, because a start-up that all have would make the difference look smaller. The trap: the clock says nothing of the cost,
for ranges are there to be copied side by side; but side by side they also split the pages of one index more often.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from typing import Any, Final

from streamer.copy_jobs import RANGE_ROWS
from tests.bench.contenders import ROLES, Daemon, Pair
from tests.bench.databases import moment
from tests.bench.report import spread
from tests.bench.work import PER, Jobs, Sizes

WHOLE: Final = "as a whole"
WAYS: Final = {WHOLE: 1, "in ranges": 1, "in ranges, two jobs": 2}
"""And the jobs of each."""
GOALS: Final = {"in ranges": "≤ 1.05"}


@dataclass(frozen=True, slots=True)
class Result:
    """One copy: CPU seconds for each 100,000 rows, and how long it took."""

    run: int
    way: str
    cpu: float
    seconds: float


def measure(pair: Callable[[], AbstractContextManager[Pair]], sizes: Sizes, runs: int) -> list[Result]:
    """Copy the same rows in each way, in turn; `pair` gives a full database and an empty one."""
    results = []
    for run in range(1, runs + 1):
        for way, jobs in WAYS.items():
            at_once = sizes.copied_rows if way == WHOLE else min(RANGE_ROWS, sizes.copied_rows // 4)
            options = {"copy_jobs": jobs, "copy_range_rows": at_once}
            with pair() as databases:
                results.append(Result(run, way, *_copy(databases, sizes, options)))
            print(f"run {run}, {way}: {results[-1].cpu:.3f} CPU s, {results[-1].seconds:.2f} s", file=sys.stderr)
    return results


def _copy(pair: Pair, sizes: Sizes, options: dict[str, int]) -> tuple[float, float]:
    urls = {"a": pair.source.url, "b": pair.target.url}
    with closing(Daemon(urls, ROLES[False], options=options)) as daemon, closing(Jobs(pair, daemon, sizes)) as jobs:
        jobs.settle()
        daemon.start()
        start = moment(daemon, lambda: "copy_started" in daemon.log, "the copy to begin")
        before = jobs.cpu()
        end = jobs.copied(sizes.copied_rows)
        (_, whole), (_, then) = jobs.cpu(), before
        jobs.verify()
    return (whole - then) / sizes.copied_rows * PER, end - start


def table(results: Sequence[Result], sizes: Sizes) -> str:
    """The medians in Markdown; the ratio is the median of those of each run."""
    lines = [
        f"| copy of {sizes.copied_rows:,} rows | CPU s for each {PER:,} | of it | goal | s |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = {r.run: r.cpu for r in results if r.way == WHOLE}
    for way in WAYS:
        of = [r for r in results if r.way == way]
        ratio = statistics.median(r.cpu / base[r.run] for r in of)
        seconds = statistics.median(r.seconds for r in of)
        cpu = spread([r.cpu for r in of], ".3f")
        lines.append(f"| {way} | {cpu} | {ratio:.3f} | {GOALS.get(way, '')} | {seconds:.1f} |")
    return "\n".join(lines)


def document(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every single figure, for JSON."""
    return [asdict(r) for r in results]
