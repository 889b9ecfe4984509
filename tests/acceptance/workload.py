"""A workload that is made to collide: nodes write the same few keys of many small tables at once, each table by a seed of its own.

Every table has a seed, a list of transactions for each node drawn from it, and one of the `SHAPES`. Writers run through the lists;
what the servers refuse (a unique value that is taken, a deadlock) is rolled back and forgotten, as an application would.
The trap: a seed fixes what is tried, not how it interleaves; so the history of a table is told with the commit times.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest

import psycopg

from tests.servers import Database, Row

KEYS = range(1, 6)
VALUES = range(1, 7)
SHAPES = {
    "plain": "id integer PRIMARY KEY, v integer, w text",
    "unique": "id integer PRIMARY KEY, u integer UNIQUE, v integer, w text",
    "two keys": "id integer, k integer, u integer UNIQUE, v integer, w text, PRIMARY KEY (id, k)",
    "merged": "id integer PRIMARY KEY, v integer, w text, n integer NOT NULL DEFAULT 0, top integer, low integer",
}
MERGED = {"delta": ["n"], "max": ["top"], "min": ["low"]}
ASSIGNED = 100000  # txid_current_if_assigned()
MANY = 250
WIDE = 3000  # characters that do not compress: out of line, and not in the WAL of an update that leaves them alone


@dataclass(frozen=True)
class Table:
    """One table of the workload."""

    seed: int
    shape: str

    @property
    def name(self) -> str:
        return f"s{self.seed}"

    @property
    def ddl(self) -> str:
        return f"CREATE TABLE {self.name} ({SHAPES[self.shape]})"

    @property
    def identity(self) -> str:
        """For nodes that are read from the WAL."""
        return f"ALTER TABLE {self.name} REPLICA IDENTITY FULL"

    @property
    def query(self) -> str:
        """All rows, in an order that every node has."""
        return f"SELECT * FROM {self.name} ORDER BY 1, 2"

    def transactions(self, node: str, number: int) -> Iterator[list[str]]:
        """The transactions that a node tries."""
        dice = random.Random(f"{self.seed} {node}")
        for _ in range(number):
            if "u integer" in SHAPES[self.shape] and dice.random() < 0.05:
                yield self._exchange(dice)
            elif dice.random() < 0.03:
                yield [*self._large(dice), *([self._statement(dice)] * dice.randrange(2))]
            else:
                yield [self._statement(dice) for _ in range(dice.choice([1, 1, 1, 2, 3]))]

    def _exchange(self, dice: random.Random) -> list[str]:
        """Two rows give each other their unique values, which only a third value in between makes possible."""
        one, other = dice.sample(KEYS, 2)
        spare, first, second = dice.randrange(100, 200), dice.choice(VALUES), dice.choice(VALUES)
        values = ((spare, one), (first, other), (second, one))
        return [f"UPDATE {self.name} SET u = {value} WHERE id = {key}" for value, key in values]

    def _large(self, dice: random.Random) -> list[str]:
        """What is written set by set elsewhere, or empties the table."""
        k, ks = (", k", ", 1") if self.shape == "two keys" else ("", "")
        rows = f"SELECT i{ks}, {dice.choice(VALUES)} FROM generate_series(1, {MANY}) AS i"
        insert = f"INSERT INTO {self.name} (id{k}, v) {rows} WHERE NOT EXISTS (SELECT 1 FROM {self.name} AS t WHERE t.id = i)"
        update = f"UPDATE {self.name} SET v = {dice.choice(VALUES)} WHERE id > {dice.choice(KEYS)}"
        delete = f"DELETE FROM {self.name} WHERE id > {dice.choice(KEYS)}"
        return dice.choice([[insert], [insert], [insert, delete], [update], [delete, insert], [f"TRUNCATE {self.name}"]])

    def _statement(self, dice: random.Random) -> str:
        return dice.choice([self._insert, self._insert, self._update, self._update, self._update, self._delete, self._move])(dice)

    def _where(self, dice: random.Random) -> str:
        more = f" AND k = {dice.choice((1, 2))}" if self.shape == "two keys" else ""
        if dice.random() < 0.2:
            return f"id IN ({dice.choice(KEYS)}, {dice.choice(KEYS)}){more}"
        return f"id = {dice.choice(KEYS)}{more}"

    def _insert(self, dice: random.Random) -> str:
        values = {"id": dice.choice(KEYS), "v": dice.choice(VALUES), "w": self._text(dice)}
        if "u integer" in SHAPES[self.shape]:
            values["u"] = dice.choice(["NULL", *VALUES])
        if self.shape == "two keys":
            values["k"] = dice.choice((1, 2))
        if self.shape == "merged":
            values |= {"n": dice.choice(VALUES), "top": dice.choice(VALUES), "low": dice.choice(VALUES)}
        return f"INSERT INTO {self.name} ({', '.join(values)}) VALUES ({', '.join(map(str, values.values()))})"

    def _update(self, dice: random.Random) -> str:
        choices = [f"v = {dice.choice(VALUES)}", "v = v + 1", f"w = {self._text(dice)}"]
        if "u integer" in SHAPES[self.shape]:
            choices += [f"u = {dice.choice(['NULL', *VALUES])}", f"u = {dice.choice(VALUES)}, v = 0"]
        if self.shape == "merged":
            raised = f"top = greatest(top, {dice.choice(VALUES)}), low = least(low, {dice.choice(VALUES)})"  # never back
            choices += [f"n = n + {dice.choice(VALUES)}", "n = n - 1", raised, f"n = n + 10, v = {dice.choice(VALUES)}"]
        return f"UPDATE {self.name} SET {dice.choice(choices)} WHERE {self._where(dice)}"

    def _delete(self, dice: random.Random) -> str:
        return f"DELETE FROM {self.name} WHERE {self._where(dice)}"

    def _move(self, dice: random.Random) -> str:
        return f"UPDATE {self.name} SET id = {dice.choice(KEYS)} WHERE id = {dice.choice(KEYS)}"

    @staticmethod
    def _text(dice: random.Random) -> str:
        if dice.random() < 0.8:
            return f"'{dice.choice('abcdef')}'"
        return f"'{''.join(dice.choices('abcdefghijklmnopqrstuvwxyz0123456789', k=WIDE))}'"


@dataclass
class Workload:
    """Runs the tables' transactions on several nodes at once, from `start` to `join`, over some `seconds`."""

    tables: Sequence[Table]
    nodes: Mapping[str, Database]
    number: int
    seconds: float
    history: list[tuple[str, str, int, str]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start two writers a node, which share the tables."""
        halves = (
            [table for i, table in enumerate(self.tables) if i % 2],
            [table for i, table in enumerate(self.tables) if not i % 2],
        )
        for name, database in self.nodes.items():
            for tables in filter(None, halves):
                thread = threading.Thread(target=self._write, args=[name, database, tables])
                thread.start()
                self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def pause(self, seconds: float) -> None:
        """Let the writers go on for a while."""
        self._stop.wait(seconds)

    def stop(self) -> None:
        """Let the writers end early."""
        self._stop.set()
        self.join()

    def _write(self, node: str, database: Database, tables: Sequence[Table]) -> None:
        pause = self.seconds / (self.number * len(tables))
        lists = [[(table, statements) for statements in table.transactions(node, self.number)] for table in tables]
        with database.connect() as connection:
            for step in (step for steps in zip_longest(*lists) for step in steps if step):
                if self._stop.wait(pause):
                    return
                self._try(node, connection, *step)

    def _try(self, node: str, connection: psycopg.Connection[Row], table: Table, statements: Sequence[str]) -> None:
        assigned = "txid_current_if_assigned" if connection.info.server_version >= ASSIGNED else "txid_current"
        try:
            with connection.transaction():
                for number, statement in enumerate(statements):
                    with connection.transaction() if number % 2 else nullcontext():  # some rows have the xid of a savepoint
                        connection.execute(statement.encode())
                xid = connection.execute(f"SELECT {assigned}()".encode()).fetchone()
        except (psycopg.IntegrityError, psycopg.OperationalError):
            return
        if xid and xid[0]:
            self.history.append((table.name, node, int(xid[0]), "; ".join(map(shortened, statements))))

    def told(self, table: Table) -> str:
        """What was committed in a table, in the order of the commit times."""
        times: list[tuple[object, str, str]] = []
        for name, node, xid, statements in self.history:
            if name == table.name:
                ((moment,),) = self.nodes[node].query(f"SELECT {commit_time(self.nodes[node], '%s::text::xid')}", [xid])
                times.append((moment, node, statements))
        return "\n".join(f"{moment} {node}: {statements}" for moment, node, statements in sorted(times, key=str))


def commit_time(node: Database, xid: str) -> str:
    """The expression for a transaction's commit time, if the server keeps it, else for its xid."""
    kept = node.query("SELECT setting FROM pg_settings WHERE name = 'track_commit_timestamp'") == [("on",)]
    return f"pg_xact_commit_timestamp({xid})::text" if kept else f"({xid})::text"


def shortened(text: str) -> str:
    """The text without the bulk of wide values."""
    return text if len(text) < 200 else f"{text[:150]}…{text[-40:]}"
