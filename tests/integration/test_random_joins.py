"""A node joins two others at a random moment, amid everything: applications that write to the same rows, tables and counters on all
of them, from before it has its rows; daemons that end and start in any order; nodes that are behind. At the end all are equal.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import psycopg
import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.applications import Application, Statement
from tests.integration.streams import four_nodes, running
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for_equal

KEYED = ("items", "emptied", "sums")
HOT, COUNTERS, OLD_ROWS = 200, 20, 30
SEATS = "CREATE TABLE seats (id int PRIMARY KEY, writer text, seat int UNIQUE); ALTER TABLE seats REPLICA IDENTITY FULL"
PERSONS, PLACES = 60, 25


class Writer(Application):
    """It writes to rows that others write to as well."""

    refusals = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected)

    def __init__(self, name: str, database: Database, seed: int) -> None:
        super().__init__(name, database)
        self._dice = random.Random(f"{name} {seed}")

    def next(self) -> list[Statement]:
        dice = self._dice
        key, table, what = dice.randint(1, HOT), dice.choice(KEYED[:2]), dice.random()
        if what < 0.01:
            return [(f"TRUNCATE {table}", [])]
        if what < 0.04:
            return [self._seated()]
        if what < 0.10:
            return [("INSERT INTO log VALUES (%s, %s)", [self.name, self.transactions])]
        if what < 0.30:
            return [(f"INSERT INTO {table} VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", [key, self.name])]
        if what < 0.40:
            return [("INSERT INTO sums VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", [key % COUNTERS, self.name])]
        if what < 0.55:
            return [("UPDATE sums SET n = n + 1, writer = %s WHERE id = %s", [self.name, key % COUNTERS])]
        if what < 0.75:
            return [(f"UPDATE {table} SET writer = %s, n = %s WHERE id = %s", [self.name, self.transactions, key])]
        if what < 0.80:
            return [(f"UPDATE {table} SET id = id + {HOT} WHERE id = %s", [key])]
        if what < 0.85:
            return [(f"UPDATE {table} SET writer = %s WHERE id BETWEEN %s AND %s", [self.name, key, key + 10])]
        return [(f"DELETE FROM {table} WHERE id IN (%s, %s)", [key, key + HOT])]

    def _seated(self) -> Statement:
        """What collides with other keys, that others write, as well."""
        dice, name = self._dice, f"{self.name}{self.transactions}"
        seat, person, what = dice.randint(1, PLACES), dice.randint(1, PERSONS), dice.random()
        own = person + 1000 * "abc".index(self.name)
        if what < 0.5:
            return "INSERT INTO seats VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [dice.choice([person, own]), name, seat]
        if what < 0.8:
            return "UPDATE seats SET writer = %s WHERE seat = %s", [name, seat]
        if what < 0.9:
            return "UPDATE seats SET seat = %s WHERE seat = %s", [dice.randint(1, PLACES), seat]
        return "DELETE FROM seats WHERE seat = %s", [seat]


class Play:
    """What happens, as the dice fall."""

    def __init__(self, nodes: Mapping[str, Database], seed: int, stack: ExitStack) -> None:
        self.dice = random.Random(seed)
        self._nodes, self._seed, self._stack = nodes, seed, stack
        self._daemons = stack.enter_context(ExitStack())
        self.writers: dict[str, Writer] = {}

    def fill(self) -> None:
        """Some tables have rows on the first node."""
        for table in KEYED:
            if self.dice.random() < 0.7:
                self._nodes["a"].execute(f"INSERT INTO {table} SELECT i, 'old', 0 FROM generate_series(1, {OLD_ROWS}) i")
        if self.dice.random() < 0.5:
            self._nodes["a"].execute("INSERT INTO log VALUES ('old', 1), ('old', 1)")
        if self.dice.random() < 0.7:
            self._nodes["a"].execute(f"INSERT INTO seats SELECT i, 'old', i FROM generate_series(1, {PLACES - 10}) i")

    def prepared(self, sources: str) -> Config:
        """The sync of these sources, set up."""
        sync = {"sources": list(sources), "tables": ["public.*"], "table": {"public.sums": {"delta": ["n"]}}}
        config = checked({"nodes": {name: {"url": self._nodes[name].url} for name in sources}, "syncs": {"s": sync}})
        setup(config, None, lambda line: None, fix=True)
        return config

    def begin(self, config: Config, sources: str) -> None:
        """One daemon, or one for each source."""
        if self.dice.random() < 0.5:
            self._daemons.enter_context(running(config, wait=False, set_up=False))
            return
        for source in self.dice.sample(sources, len(sources)):
            self._daemons.enter_context(running(config, source=source, wait=False, set_up=False))
            self.pass_time(0, 1.5)

    def end(self) -> None:
        """No daemon runs for a while."""
        self._daemons.close()
        self.pass_time(0, 1)

    def write(self, names: str, chance: float = 1.0) -> None:
        """Applications come to these nodes, if they do, and stay."""
        for name in names:
            if name not in self.writers and self.dice.random() < chance:
                self.writers[name] = Writer(name, self._nodes[name], self._seed)
                self.writers[name].start()
                self._stack.callback(self.writers[name].stop)

    def hold_back(self, names: str) -> None:
        """Sometimes, one node takes nothing from the others for a while."""
        if self.dice.random() < 0.6:
            args = (self._nodes[self.dice.choice(names)], self.dice.uniform(0.2, 3))
            holding = threading.Thread(target=_hold, args=args)
            holding.start()
            self._stack.callback(holding.join)

    def pass_time(self, least: float, most: float) -> None:
        """Have things fall together differently; nothing rests on how long it is."""
        time.sleep(self.dice.uniform(least, most))


def _hold(node: Database, seconds: float) -> None:
    with node.connect() as connection:
        connection.execute("SET lock_timeout = '3s'")
        connection.execute("BEGIN")
        try:
            connection.execute("LOCK TABLE streamer.progress IN SHARE MODE")
        except psycopg.errors.LockNotAvailable:
            return
        time.sleep(seconds)


@pytest.fixture
def nodes(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> dict[str, Database]:
    made = four_nodes(databases, pg15, pg18, KEYED)
    for database in made.values():
        database.execute("CREATE TABLE log (writer text, n int)")
        database.execute(SEATS)
    return made


def wait_until_equal(nodes: Mapping[str, Database], names: Sequence[str]) -> None:
    def rows(name: str) -> Counter[tuple[str, Row]]:
        return Counter((table, row) for table in (*KEYED, "log", "seats") for row in nodes[name].query(f"SELECT * FROM {table}"))

    def differing() -> dict[str, list[list[tuple[str, Row]]]]:
        """By node, some rows that it lacks and some that only it has."""
        first, *others = [rows(name) for name in names]
        pairs = zip(names[1:], others, strict=True)
        return {name: [sorted(first - own)[:5], sorted(own - first)[:5]] for name, own in pairs if own != first}

    wait_for_equal(differing, dict[str, list[list[tuple[str, Row]]]](), "all nodes to be equal", deadline=400)


@pytest.mark.timeout(600)  # collisions are resolved one by one
@pytest.mark.parametrize("attempt", range(3))
def test_all_are_equal_after_a_node_has_joined_amid_everything(nodes: dict[str, Database], attempt: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    with ExitStack() as stack:
        play = Play(nodes, seed, stack)
        dice = play.dice
        play.fill()
        before = play.prepared("ab")
        play.write("ab", chance=0.5)
        play.pass_time(0, 0.3)
        play.begin(before, "ab")
        play.write("ab")
        play.pass_time(0.2, 3)
        play.hold_back("ab")
        if late := dice.random() < 0.5:
            play.end()
        config = play.prepared("abc")
        play.write("c", chance=0.3)
        if not late:
            play.end()
        for _ in range(dice.randint(1, 4)):
            play.begin(config, "abc")
            play.hold_back("abc")
            play.write("c", chance=0.4)
            play.pass_time(0, 2)
            play.end()
        play.write("c")
        play.pass_time(0, 1)
        for writer in play.writers.values():
            writer.stop()
        with running(config) as streams:
            wait_until_equal(nodes, "abc")
            assert streams.problems == []
