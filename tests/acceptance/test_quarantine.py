"""Rows that a target refuses wait in quarantine while everything else goes on, exactly once, whatever is killed."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.daemon import Streamer
from tests.meanwhile import meanwhile
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

UNLUCKY = "v % 10 = 3"
"""What the target refuses of the table t."""


class Shop:
    """A sync of table t into a target that refuses unlucky rows."""

    def __init__(self, source: Database, target: Database | Path, directory: Path) -> None:
        self.source = source
        self._target = target
        url = target.url if isinstance(target, Database) else f"sqlite:///{target}"
        self.streamer = Streamer(directory, {"a": source.url, "b": url})
        self.streamer.write_config(on_error="quarantine")
        source.execute("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, changes int NOT NULL DEFAULT 0)")

    def refuse_unlucky_rows(self) -> None:
        if isinstance(self._target, Database):
            self._target.execute(f"ALTER TABLE t ADD CONSTRAINT luck CHECK (NOT {UNLUCKY})")
        else:
            for event in ("INSERT", "UPDATE"):
                self._in_file(
                    f"CREATE TRIGGER luck_{event} BEFORE {event} ON t WHEN NEW.{UNLUCKY} "
                    "BEGIN SELECT RAISE(ABORT, 'violates \"luck\"'); END"
                )

    def refuse_nothing(self) -> None:
        if isinstance(self._target, Database):
            self._target.execute("ALTER TABLE t DROP CONSTRAINT luck")
        else:
            self._in_file("DROP TRIGGER luck_INSERT")
            self._in_file("DROP TRIGGER luck_UPDATE")

    def _in_file(self, statement: str) -> list[tuple[object, ...]]:
        assert isinstance(self._target, Path)
        with closing(sqlite3.connect(self._target, isolation_level=None, timeout=20)) as connection:
            return connection.execute(statement).fetchall()

    def there(self, query: str) -> list[tuple[object, ...]]:
        """The rows of a query on the target."""
        return self._target.query(query) if isinstance(self._target, Database) else self._in_file(query)

    @property
    def rows(self) -> list[tuple[object, ...]]:
        return self.there("SELECT id, v, changes FROM t ORDER BY id")

    def rows_of_source(self, condition: str = "true") -> list[tuple[object, ...]]:
        return list(self.source.query(f"SELECT id, v, changes FROM t WHERE {condition} ORDER BY id"))

    @property
    def held(self) -> Counter[int]:
        """How many changes are held of each row."""
        name = "streamer.quarantine" if isinstance(self._target, Database) else "streamer_quarantine"
        return Counter(int(json.loads(str(key))["id"]) for (key,) in self.there(f"SELECT row_key FROM {name}"))

    def has_held(self, changes: int) -> bool:
        return sum(self.held.values()) >= changes


@pytest.fixture(params=["postgresql", "sqlite"])
def shop(request: pytest.FixtureRequest, source18: Database, target15: Database, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(source18, target15 if request.param == "postgresql" else tmp_path / "b.sqlite", tmp_path)
    with made.streamer:
        made.streamer.setup()
        made.refuse_unlucky_rows()
        yield made


def metrics(streamer: Streamer) -> dict[str, float]:
    families = text_string_to_metric_families(streamer.get("/metrics"))
    return {sample.name: sample.value for family in families for sample in family.samples if "quarantine" in sample.name}


def test_refused_rows_are_told_everywhere_and_retried_while_it_runs(shop: Shop) -> None:
    streamer = shop.streamer.start_streaming()
    shop.source.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 20) n; UPDATE t SET changes = 1")
    wait_for_equal(lambda: shop.rows, shop.rows_of_source(f"NOT {UNLUCKY}"), "the other rows")
    assert shop.held == {3: 2, 13: 2}
    gauges = {"streamer_edge_quarantine_changes": 4.0, "streamer_edge_quarantined_changes_total": 4.0}
    wait_for_equal(lambda: metrics(streamer), gauges, "the metrics")
    told = streamer.command("status", succeeds=False)
    assert told.returncode == 1
    assert "shop: a -> b: 4 changes in quarantine; see: streamer quarantine list" in told.stdout
    record = next(json.loads(line) for line in streamer.log.splitlines() if '"changes_quarantined"' in line)
    assert record["level"] == "warning"
    assert 'insert of "public.t" id=3: ' in record["first"]
    assert "luck" in record["first"]

    refused = streamer.command("quarantine", "retry", succeeds=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "luck" in refused.stderr
    assert shop.held == {3: 2, 13: 2}

    shop.source.execute("UPDATE t SET v = 0 WHERE id = 3")  # put right on the source: now this row can be retried
    wait_for_equal(lambda: shop.held[3], 3, "the update to follow")
    listed = json.loads(streamer.command("quarantine", "list", "--json").stdout)["changes"]
    first = next(change["id"] for change in listed if change["key"] == {"id": "3"})
    assert streamer.command("quarantine", "retry", first).stdout == "shop: a -> b: applied 3 changes\n"
    assert shop.held == {13: 2}
    shop.refuse_nothing()
    assert streamer.command("quarantine", "retry", "--table", "t").stdout == "shop: a -> b: applied 2 changes\n"
    shop.source.execute("UPDATE t SET changes = 2")
    wait_for_equal(lambda: shop.rows, shop.rows_of_source(), "all rows")
    wait_for_equal(lambda: metrics(streamer)["streamer_edge_quarantine_changes"], 0.0, "the gauge")
    assert streamer.command("status").returncode == 0
    assert streamer.stop() == 0


@contextmanager
def written(shop: Shop, seed: int) -> Iterator[Counter[int]]:
    """Write rows and change some of them until the end of the context; give how often each was changed."""
    chance, made = random.Random(seed), Counter[int]()

    def work(stop: threading.Event) -> None:
        with shop.source.connect() as connection:
            for number in count():
                connection.execute("INSERT INTO t VALUES (%s, %s)", [number, number])
                made[number] += 1
                for changed in chance.choices(range(number + 1), k=2):
                    connection.execute("UPDATE t SET v = v + 10, changes = changes + 1 WHERE id = %s", [changed])
                    made[changed] += 1
                if stop.wait(0.005):  # some hundred rows in all
                    return

    with meanwhile(work):
        yield made


def test_nothing_is_lost_or_held_twice_when_the_daemon_is_killed_again_and_again(shop: Shop) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    shop.streamer.start_streaming()
    with written(shop, seed) as made:
        for _ in range(4):
            more = sum(shop.held.values()) + 5
            wait_for(partial(shop.has_held, more), "more changes to be held")
            threading.Event().wait(chance.random() / 5)  # a random moment to be killed at
            shop.streamer.kill()
            shop.streamer.start()
    wait_for_equal(lambda: shop.rows, shop.rows_of_source(f"NOT {UNLUCKY}"), "the other rows")
    unlucky = {number: times for number, times in made.items() if number % 10 == 3}
    wait_for_equal(lambda: dict(shop.held), unlucky, "what is held")
    shop.refuse_nothing()
    assert shop.streamer.command("quarantine", "retry").stdout == f"shop: a -> b: applied {sum(unlucky.values())} changes\n"
    assert shop.rows == shop.rows_of_source()
    assert shop.held == {}
    assert shop.streamer.stop() == 0
