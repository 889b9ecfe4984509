"""What the benchmark has found: medians over the runs, compared with the built-in subscription, as a table and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.contenders import BUILT_IN, MULTI_MASTER
from tests.bench.work import Figures, Sizes


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a job measures. Rates are compared by ratio, times by difference."""

    name: str
    job: str
    title: str
    unit: str
    goal: float | None = None  # streamer with pgoutput: ratio at least, or difference at most
    multi_master_goal: float | None = None  # the same between two sources

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")


FIGURES = (
    Figure("update", "update", "UPDATE of {updated_rows:,} rows, from commit", "rows/s", 0.9),
    Figure("update_whole", "update", "the same, from its beginning", "rows/s"),
    Figure("drain", "drain", "drain of {transactions:,} pgbench transactions", "tx/s", 0.9, 0.5),
    Figure("start_up", "drain", "start-up before it, not counted", "s"),
    Figure("latency_median", "latency", "latency of one row, median of {commits}", "ms", 3.0),
    Figure("latency_p99", "latency", "the same, 99th percentile", "ms"),
    Figure("copy", "copy", "initial copy of {copied_rows:,} rows", "rows/s", 0.8),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one contender."""

    contender: str
    run: int
    figures: Figures


class Report:
    """The rounds of one benchmark."""

    def __init__(self, server: str, sizes: Sizes, rounds: Sequence[Round]) -> None:
        self._server = server
        self._sizes = sizes
        self._rounds = rounds
        self._contenders = list(dict.fromkeys(r.contender for r in rounds))

    def table(self) -> str:
        """The results in Markdown: median (lowest–highest) of each contender, and what streamer comes to against the built-in."""
        head = ["", "unit", *self._contenders, *(f"{c} / {BUILT_IN}" for c in self._compared()), "goal"]
        lines = [head, ["---"] * len(head), *self._rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def machine(self) -> str:
        """Where it ran, in two lines."""
        return "\n".join(f"{key}: {value}" for key, value in self._where().items())

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        sizes = asdict(self._sizes)
        return {"where": self._where(), "sizes": sizes, "rounds": [asdict(r) for r in self._rounds]}

    def _where(self) -> dict[str, str]:
        gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": f"{_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GB, Linux {platform.release()}",
            "versions": f"{self._server}, Python {platform.python_version()}, psycopg {version('psycopg')}",
        }

    def _compared(self) -> list[str]:
        return [c for c in self._contenders if c != BUILT_IN] if BUILT_IN in self._contenders else []

    def _rows(self) -> Iterator[list[str]]:
        for figure in FIGURES:
            values = {c: v for c in self._contenders if (v := self._values(c, figure))}
            if values:
                title = figure.title.format(**asdict(self._sizes), copied_rows=self._sizes.copied_rows)
                shown = [_shown(values[c], figure) for c in self._contenders]
                compared = [_compared(values[c], values[BUILT_IN], figure) for c in self._compared()]
                yield [title, figure.unit, *shown, *compared, _goal(figure)]

    def _values(self, contender: str, figure: Figure) -> list[float]:
        return [r.figures[figure.name] for r in self._rounds if r.contender == contender and figure.name in r.figures]


def _shown(values: Sequence[float], figure: Figure) -> str:
    form = ",.0f" if figure.is_rate else ".2f"
    median = format(statistics.median(values), form)
    return median if len(values) == 1 else f"{median} ({min(values):{form}}–{max(values):{form}})"


def _compared(values: Sequence[float], built_in: Sequence[float], figure: Figure) -> str:
    ours, theirs = statistics.median(values), statistics.median(built_in)
    return f"{ours / theirs:.2f}" if figure.is_rate else f"{ours - theirs:+.2f} {figure.unit}"


def _goal(figure: Figure) -> str:
    goals = {"": figure.goal, f"{MULTI_MASTER} ": figure.multi_master_goal}
    sign, unit = ("≥ ", "") if figure.is_rate else ("≤ +", f" {figure.unit}")
    return ", ".join(f"{whose}{sign}{goal:g}{unit}" for whose, goal in goals.items() if goal is not None)


def _processor() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.machine()
