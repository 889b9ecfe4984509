"""What the jobs have found: medians over the rounds, compared with the built-in subscription, as tables and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.contenders import BUILT_IN, MULTI_MASTER
from tests.bench.work import Figures, Sizes


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a job measures."""

    name: str
    job: str
    title: str
    unit: str
    #: of streamer to the built-in: a rate is to be at least this times, a time at most
    goal: float | None = None
    #: where it is another one for a contender
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")

    def goal_of(self, contender: str) -> float | None:
        """The ratio that a contender is to reach."""
        return self.goals.get(contender, None if contender == MULTI_MASTER else self.goal)


FIGURES = (
    Figure("update", "update", "UPDATE of {updated_rows:,} rows, from commit", "rows/s", 1.5, {"wal2json": 1.2}),
    Figure("update_whole", "update", "the same, from its beginning", "rows/s"),
    Figure("insert", "insert", "INSERT of {updated_rows:,} rows, from commit", "rows/s", 1.3),
    Figure("delete", "insert", "DELETE of {updated_rows:,} rows, from commit", "rows/s", 1.3),
    Figure("drain", "drain", "drain of {transactions:,} pgbench transactions", "tx/s", 1.5, {"wal2json": 1.3, MULTI_MASTER: 0.5}),
    Figure("start_up", "drain", "start-up before it, not counted", "s"),
    Figure("latency_median", "latency", "latency of one row, median of {commits}", "ms", 2.0),
    Figure("latency_p99", "latency", "the same, 99th percentile", "ms", 3.0),
    Figure("busy", "busy", "pgbench on the source while replicated", "tx/s", 0.95),
    Figure("copy", "copy", "initial copy of {copied_rows:,} rows", "rows/s", 1.0),
)
SPENT = (
    ("update", "update", "UPDATE"),
    ("insert", "insert", "INSERT"),
    ("delete", "insert", "DELETE"),
    ("drain", "drain", "drain"),
)
CPU_FIGURES = tuple(
    figure
    for name, job, title in SPENT
    for figure in (
        Figure(f"{name}_cpu", job, f"{title}: daemon, or apply worker", "CPU s"),
        Figure(f"{name}_cpu_all", job, f"{title}: that and both servers", "CPU s"),
    )
)
# workers of a subscription that copy are gone when they are done, so only the sum is known
CPU_FIGURES = (*CPU_FIGURES, Figure("copy_cpu_all", "copy", "copy: daemon or workers, and both servers", "CPU s"))


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one contender."""

    contender: str
    run: int
    figures: Figures


class Report:
    """The rounds of one benchmark."""

    def __init__(self, sizes: Sizes, rounds: Sequence[Round]) -> None:
        self._sizes = sizes
        self._rounds = rounds
        self.contenders = list(dict.fromkeys(r.contender for r in rounds))

    def tables(self) -> str:
        """The results in Markdown: median (lowest–highest) of each contender, and what streamer comes to against the built-in;
        then CPU seconds for each 100,000 rows or transactions."""
        head = ["", "unit", *self.contenders, *(f"{c} / {BUILT_IN}" for c in self.compared)]
        tables = [markdown([*head, "goal"], [[*row, self._goal(f)] for f, row in self._rows(FIGURES)])]
        if spent := [row for _, row in self._rows(CPU_FIGURES)]:
            tables.append(markdown(head, spent))
        return "\n\n".join(tables)

    def document(self) -> dict[str, Any]:
        """Everything, for JSON; `of` reads it."""
        return {"sizes": asdict(self._sizes), "rounds": [asdict(r) for r in self._rounds]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Report:
        """Return the report that a document was made of."""
        return cls(Sizes(**document["sizes"]), [Round(**r) for r in document["rounds"]])

    @property
    def compared(self) -> list[str]:
        """The contenders that are compared with the built-in subscription."""
        return [c for c in self.contenders if c != BUILT_IN] if BUILT_IN in self.contenders else []

    def title(self, figure: Figure) -> str:
        """What the figure is, with the sizes."""
        return figure.title.format(**asdict(self._sizes), copied_rows=self._sizes.copied_rows)

    def ratio(self, figure: Figure, contender: str) -> float | None:
        """What a contender comes to against the built-in subscription; None if it was not measured, or less than a clock tick."""
        ours, theirs = self._values(contender, figure), self._values(BUILT_IN, figure)
        return statistics.median(ours) / median if ours and theirs and (median := statistics.median(theirs)) else None

    def _rows(self, figures: Sequence[Figure]) -> Iterator[tuple[Figure, list[str]]]:
        for figure in figures:
            values = [self._values(c, figure) for c in self.contenders]
            if any(values):
                form = ",.0f" if figure.is_rate else ".2f"
                ratios = [self.ratio(figure, c) for c in self.compared]
                compared = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
                yield figure, [self.title(figure), figure.unit, *(spread(v, form) if v else "" for v in values), *compared]

    def _values(self, contender: str, figure: Figure) -> list[float]:
        return [r.figures[figure.name] for r in self._rounds if r.contender == contender and figure.name in r.figures]

    def _goal(self, figure: Figure) -> str:
        sign = "≥" if figure.is_rate else "≤"
        goals = {c: goal for c in self.compared if (goal := figure.goal_of(c)) is not None}
        if len(set(goals.values())) == 1:
            return f"{sign} {next(iter(goals.values())):g}"
        return ", ".join(f"{contender} {sign} {goal:g}" for contender, goal in goals.items())


def where(server: str) -> dict[str, str]:
    """Tell the day, the machine and the versions; `server` is PostgreSQL's."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GB, Linux {platform.release()}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "versions": f"{server}, Python {platform.python_version()}, psycopg {version('psycopg')}",
    }


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the lowest and highest of several values."""
    median = format(statistics.median(values), form)
    return median if len(values) == 1 else f"{median} ({min(values):{form}}–{max(values):{form}})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def _processor() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.machine()
