"""A workload that is made to collide: nodes write the same few keys of many small tables at once, each table by a seed of its own.

Every table has a seed, a list of transactions for each node drawn from it, and one of the `SHAPES`. Writers run through the lists;
what the servers refuse (a unique value that is taken, a deadlock) is rolled back and forgotten, as an application would.
The trap: a seed fixes what is tried, not how it interleaves; so the history of a table is told with the commit times.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
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
        return f"CREATE TABLE {self.name} ({SHAPES[self.shape]}); ALTER TABLE {self.name} REPLICA IDENTITY FULL"

    @property
    def query(self) -> str:
        """All rows, in an order that every node has."""
        return f"SELECT * FROM {self.name} ORDER BY 1, 2"

    def transactions(self, node: str, number: int) -> Iterator[list[str]]:
        """The transactions that a node tries."""
        dice = random.Random(f"{self.seed} {node}")
        for _ in range(number):
            yield [self._statement(dice) for _ in range(dice.choice([1, 1, 1, 2, 3]))]

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
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement.encode())
                xid = connection.execute("SELECT txid_current_if_assigned()").fetchone()
        except (psycopg.IntegrityError, psycopg.OperationalError):
            return
        if xid and xid[0]:
            self.history.append((table.name, node, int(xid[0]), "; ".join(map(shortened, statements))))

    def told(self, table: Table) -> str:
        """What was committed in a table, in the order of the commit times."""
        times: list[tuple[object, str, str]] = []
        for name, node, xid, statements in self.history:
            if name == table.name:
                ((moment,),) = self.nodes[node].query("SELECT pg_xact_commit_timestamp(%s::text::xid)", [xid])
                times.append((moment, node, statements))
        return "\n".join(f"{moment} {node}: {statements}" for moment, node, statements in sorted(times, key=str))


def shortened(text: str) -> str:
    """The text without the bulk of wide values."""
    return text if len(text) < 200 else f"{text[:150]}…{text[-40:]}"
