"""What the bars of an initial copy show on a terminal, however small it is."""

from __future__ import annotations

import io

from rich.console import Console

from streamer.admin.copy_bars import drawn
from streamer.copy_report import CopyReport, CopyTotals
from streamer.report import Counters, EdgeReport, State

TABLES = [
    CopyReport("public.visits", 955_000, 1_000_000, False, 0, 83_900_000, 371_000.0, 0.12, 0, 87_900_000),
    CopyReport("public.whole", 7, 7, True),
    CopyReport("public.orders_of_the_last_century", 1_250_000, 3_000_000, False, 2, 110_000_000, 217_000.0, 8.06, 6, 264_000_000),
]
TOTALS = CopyTotals(1, 3, 2_205_007, 4_000_007, 2, 6, 193_900_000, 351_900_000, 588_000.0, 3.05)


def edge(target: str) -> EdgeReport:
    named = ("shop", "a", target)
    return EdgeReport(*named, State.COPYING, "", 0, 0.0, 0.0, 0.0, 0, Counters(), None, copy=TABLES, copy_totals=TOTALS)


def shown(edges: list[EdgeReport], lines: int = 20, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(drawn(edges, lines))
    found = out.getvalue().splitlines()
    assert all(len(line) <= width for line in found)
    return [" ".join(line.translate(dict.fromkeys(map(ord, "━╸╺"))).split()) for line in found]


def test_a_terminal_of_80_columns_shows_every_figure() -> None:
    assert shown([edge("b")]) == [
        "copied rows bytes ranges rows/s left",
        "shop: a -> b, 1/3 55% 2.21M/4M 194M/352M 2/6 588k 0:00:03",
        "public.visits 96% 955k/1M 83.9M/87.9M 371k 0:00:00",
        "public.orders_of_the_… 42% 1.25M/3M 110M/264M 2/6 217k 0:00:08",
    ]


def test_a_wider_one_shows_whole_names() -> None:
    assert any("public.orders_of_the_last_century 42%" in line for line in shown([edge("b")], width=120))


def test_where_not_all_has_room_edges_go_before_tables() -> None:
    edges = [edge(target) for target in "bcde"]
    assert [line.split(",")[0] for line in shown(edges, lines=4)[1:]] == [f"shop: a -> {target}" for target in "bcde"]
    assert [line.split(",")[0] for line in shown(edges, lines=3)[1:]] == ["shop: a -> b", "shop: a -> c", "and 2 more edges"]


def test_what_is_not_known_is_left_out() -> None:
    unknown = CopyReport("public.t", 5, 0, done=False, bytes=50, total_bytes=50)
    found = shown([EdgeReport("shop", "a", "b", State.COPYING, "", 0, 0.0, 0.0, 0.0, 0, Counters(), None, copy=[unknown])])
    assert found[1:] == ["shop: a -> b, 0/0 0/0 0/0", "public.t 100% 5/5 50/50 0"]
