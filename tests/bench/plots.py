"""`make bench-plots`: docs/benchmarks-ratios.svg and docs/benchmarks-growth.svg, drawn from docs/benchmarks.json.

The JSON is what `make bench ARGS="--json docs/benchmarks.json"` wrote, in one run or in several of some jobs each. The trap: an SVG
holds the day and random names unless told otherwise, and would differ with every drawing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, NullLocator

from tests.bench import growth
from tests.bench.contenders import BUILT_IN
from tests.bench.report import FIGURES, Figure, Report

DOCS: Final = Path(__file__).parents[2] / "docs"
COLORS: Final = ("#2a6f97", "#e09f3e", "#7a5195")
GREY: Final = "#555555"
STYLE: Final = {
    "svg.hashsalt": "streamer",
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
}


def main() -> int:
    """Draw what the file has."""
    document = json.loads((DOCS / "benchmarks.json").read_text())
    with mpl.rc_context(STYLE):
        reports = [Report.of(document[name]) for name in ("jobs", "copy") if name in document]
        if reports:
            _save(_ratios(reports), DOCS / "benchmarks-ratios.svg")
        if "growth" in document:
            _save(_growth(growth.of(document["growth"]["points"])), DOCS / "benchmarks-growth.svg")
    return 0


def _save(drawing: Drawing, path: Path) -> None:
    drawing.savefig(path, metadata={"Date": None})
    print(path)


def _ratios(reports: Sequence[Report]) -> Drawing:
    """What streamer comes to against the built-in subscription: rates above, times below."""
    found = [(figure, report) for figure in FIGURES for report in reports if report.ratio(figure, report.compared[0]) is not None]
    groups = [[pair for pair in found if pair[0].is_rate is rates and pair[0].name != "start_up"] for rates in (True, False)]
    heights = [len(group) for group in groups]
    drawing = Drawing(figsize=(8, 1.6 + 0.5 * sum(heights)), layout="constrained")
    axes = drawing.subplots(2, 1, height_ratios=heights)
    for ax, group, title in zip(axes, groups, ("rates: more is better", "times: less is better"), strict=True):
        _bars(ax, group)
        ax.set_title(f"streamer / {BUILT_IN} subscription, {title}", loc="left")
    axes[0].legend(frameon=False, loc="lower right")
    return drawing


def _bars(ax: Axes, group: Sequence[tuple[Figure, Report]]) -> None:
    contenders = group[0][1].compared
    width = 0.8 / len(contenders)
    for n, (contender, color) in enumerate(zip(contenders, COLORS, strict=False)):
        places = [i + (n - (len(contenders) - 1) / 2) * width for i in range(len(group))]
        ratios = [report.ratio(figure, contender) or 0.0 for figure, report in group]
        bars = ax.barh(places, ratios, width * 0.9, color=color, label=contender)
        for label in ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # lines may cross it
        goals = [figure.goal_of(contender) for figure, _ in group]
        for place, goal in zip(places, goals, strict=True):
            if goal is not None:
                ax.plot([goal, goal], [place - width / 2, place + width / 2], color="black", lw=1.6, solid_capstyle="butt")
    ax.plot([], [], color="black", lw=1.6, label="goal")
    ax.axvline(1, color=GREY, lw=0.8, ls=":")
    ax.set_yticks(range(len(group)), [report.title(figure) for figure, report in group])
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.1)
    ax.invert_yaxis()


def _growth(points: Sequence[growth.Point]) -> Drawing:
    """The time for a value, against the best of its axis, and the memory, along every axis."""
    names = list(dict.fromkeys(p.axis for p in points))
    drawing = Drawing(figsize=(2.6 * len(names), 5), layout="constrained")
    axes = drawing.subplots(2, len(names), sharey="row", squeeze=False)
    for (above, below), name in zip(axes.T, names, strict=True):
        medians = growth.medians([p for p in points if p.axis == name])
        at = list(medians)
        for key, label, color in (("seconds", "time", COLORS[0]), ("cpu", "CPU time of the daemon", COLORS[1])):
            values = [median[key] for median in medians.values()]
            above.plot(at, [value / min(values) for value in values], marker="o", ms=4, color=color, label=label)
        above.axhline(growth.GOAL, color=GREY, lw=0.8, ls=":")
        below.plot(at, [median["memory"] for median in medians.values()], marker="o", ms=4, color=COLORS[2])
        above.set_title(name, loc="left")
        for ax in (above, below):
            ax.margins(y=0.1)
            ax.set_xscale("log")
            ax.set_xticks(at, [_short(place) for place in at])
            ax.xaxis.set_minor_locator(NullLocator())
    for row in axes:
        row[0].set_ylim(bottom=0)  # only now: it settles the top as well, for the whole row
    axes[0][0].set_ylabel("time for a value / the best")
    axes[1][0].set_ylabel("peak memory of the daemon (MiB)")
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0][-1].legend(frameon=False, loc="upper right", fontsize=8)
    return drawing


def _short(number: int) -> str:
    """A number for an axis: 1,000,000 as 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)


if __name__ == "__main__":
    sys.exit(main())
