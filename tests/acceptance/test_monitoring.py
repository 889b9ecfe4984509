"""A real Prometheus asks a daemon under load: every query of the dashboards and of the alert rules gives data, and alerts fire."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.daemon import Streamer
from tests.conftest import Databases
from tests.meanwhile import meanwhile
from tests.prometheus import Prometheus, rules, scraping
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

GRAFANA: Final = Path(__file__).parents[2] / "grafana"
VARIABLES: Final = {"$sync": ".*", "$source": ".*", "$target": ".*", "$__rate_interval": "10s"}
COMPARISON: Final = re.compile(r" (==|>) [\d *.]+$")
TABLES: Final = """
CREATE TABLE items (id bigint PRIMARY KEY, n bigint NOT NULL);
INSERT INTO items SELECT i, 0 FROM generate_series(1, 1000) i;
CREATE SCHEMA nightly;
CREATE TABLE nightly.items (id bigint PRIMARY KEY);
INSERT INTO slow.items SELECT generate_series(1, 1000);
INSERT INTO slow.locked SELECT generate_series(1, 10);
ANALYZE;
"""
BOTH: Final = """
CREATE SCHEMA shared; CREATE TABLE shared.items (id bigint PRIMARY KEY, n bigint NOT NULL);
CREATE SCHEMA slow; CREATE TABLE slow.items (id bigint PRIMARY KEY); CREATE TABLE slow.locked (id bigint PRIMARY KEY);
"""
MORE_SYNCS: Final = """
[syncs.both]
sources = ["a", "b"]
tables = ["shared.*"]
[syncs.nightly]
sources = ["a"]
targets = ["s"]
tables = ["nightly.*"]
run = "every 1s"
[syncs.slow]
sources = ["a"]
targets = ["b"]
tables = ["slow.*"]
copy_range_rows = 400
"""
"""The last is copied as long as one of its tables is locked."""


@pytest.fixture
def limited(pg15: PostgresServer) -> Iterator[PostgresServer]:
    """A server that lets slots keep only so much WAL."""
    pg15.start()
    pg15.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
    pg15.execute("SELECT pg_reload_conf()")
    yield pg15
    pg15.start()
    pg15.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
    pg15.execute("SELECT pg_reload_conf()")


@contextmanager
def load(a: Database, b: Database) -> Iterator[None]:
    """Write to both until the context ends."""

    def work(enough: threading.Event) -> None:
        for i in range(1_000_000):
            if enough.is_set():
                return
            a.execute(f"UPDATE items SET n = n + 1 WHERE id <= 100; INSERT INTO items VALUES ({2000 + i}, 0)")
            a.execute(f"DELETE FROM items WHERE id = {1900 + i}; INSERT INTO nightly.items VALUES ({i})")
            for node in (a, b):
                node.execute("INSERT INTO shared.items VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = items.n + 1")

    with meanwhile(work):
        yield


def panels() -> list[dict[str, Any]]:
    """Every panel of every dashboard, with the name of its dashboard."""
    boards = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GRAFANA.glob("dashboards/*.json"))}
    return [panel | {"dashboard": name} for name, board in boards.items() for panel in board["panels"]]


def asked(expression: str) -> str:
    """The query with all of each variable chosen."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def queries() -> dict[str, str]:
    """Every query of every panel, by dashboard, panel and letter."""
    return {
        f"{panel['dashboard']}: {panel['title']} {target['refId']}": asked(target["expr"])
        for panel in panels()
        for target in panel.get("targets", ())
    }


def without_names(prometheus: Prometheus) -> list[tuple[str, str]]:
    """The panels whose legend speaks of a label that a line of theirs lacks."""
    found = []
    for panel in panels():
        for target in panel.get("targets", ()):
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            samples = prometheus.query(asked(target["expr"]))
            found += [(panel["title"], str(sample["metric"])) for sample in samples if named - set(sample["metric"])]
    return found


def parts_of_rules() -> dict[str, str]:
    """What each rule looks at, without the limit that it compares with."""
    found = {}
    for name, rule in rules().items():
        for number, part in enumerate(re.split(r" and ignoring\(\w+\) ", rule)):
            assert COMPARISON.search(part), f"{name}: {part} is not compared with a number"
            found[f"{name} {number}"] = COMPARISON.sub("", part)
    return found


def has_data(samples: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in samples)


def without_data(prometheus: Prometheus, queries: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in queries.items() if not has_data(prometheus.query(text))]


def test_every_panel_and_rule_has_data_and_alerts_fire(
    databases: Databases, limited: PostgresServer, pg18: PostgresServer, tmp_path: Path
) -> None:
    a, b = databases.create(limited, "left"), databases.create(pg18, "right")
    for node in (a, b):
        node.execute(BOTH)
    a.execute(TABLES)
    nodes = {"a": a.url, "b": b.url, "s": f"sqlite:///{tmp_path / 'shop.sqlite'}"}
    streamer = Streamer(tmp_path, nodes, targets=["b", "s"])
    streamer.write_config(verify="continuous")
    streamer.path.write_text(streamer.path.read_text() + MORE_SYNCS)
    with streamer, scraping(tmp_path, streamer.port) as prometheus, b.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE slow.locked IN EXCLUSIVE MODE")
        streamer.setup().start()
        wait_for(lambda: prometheus.query("sum(streamer_edge_up) == 5"), "all edges to be up")
        with load(a, b):
            everything = queries() | parts_of_rules()
            nothing: list[tuple[str, str]] = []
            wait_for_equal(lambda: without_data(prometheus, everything), nothing, "all queries to give data")
            assert without_names(prometheus) == []
            locker.execute("ROLLBACK")
            healthy: set[str] = set()
            wait_for_equal(prometheus.firing, healthy, "the copy to be told as stalled no longer")
        b.execute("DROP TABLE items")
        a.execute("UPDATE items SET n = n + 1")
        wait_for(lambda: prometheus.firing() == {"StreamerEdgeRetrying"}, "the alert of an edge that cannot write")
        streamer.stop()  # with a Prometheus that asks until the end
        wait_for(lambda: "StreamerDown" in prometheus.firing(), "the alert of a daemon that is gone")


def test_the_dashboards_are_what_their_source_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "dashboards.py", tmp_path], check=True)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (GRAFANA / "dashboards").iterdir()}
    assert made == kept, "run: python grafana/dashboards.py"


def test_a_table_has_one_row_for_an_edge_whatever_its_queries() -> None:
    (edges,) = [panel for panel in panels() if {"id": "merge", "options": {}} in panel.get("transformations", ())]
    labels = [re.match(r"(?:max|sum) by \((.*?)\) ", target["expr"]) for target in edges["targets"]]
    assert {found and found[1] for found in labels} == {"sync, source, target"}


def test_a_daemon_that_stands_by_does_not_hide_what_the_other_one_does() -> None:
    timelines = [panel for panel in panels() if panel["type"] == "state-timeline"]
    assert len(timelines) == 2
    for panel in timelines:
        for target in panel["targets"]:
            states = {int(number): state for state, number in re.findall(r'state="(\w+)"} == 1\) \* (\d+)', target["expr"])}
            assert states[min(states)] == "standby"


def test_no_panel_covers_another_or_leaves_the_page() -> None:
    taken: dict[tuple[str, int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x, y in product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])):
            above = taken.setdefault((panel["dashboard"], x, y), panel["title"])
            assert above == panel["title"], f"{panel['title']} covers {above}"


def test_every_panel_says_what_it_shows_in_a_unit() -> None:
    for panel in panels():
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
