"""Histories of the model of conflicts, replayed on three real servers: what agrees there must agree here.

Every history has a table of its own, all of them run at once. The first half of each is written while the daemon is stopped, so
that none of it is known elsewhere; the rest while the daemon applies the first.
A statement is passed over as the model does: an insert whose key or unique value is taken, an update that meets another row's.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from streamer.model import Kind
from tests.acceptance.mesh import MARKS, Mesh
from tests.conftest import Databases
from tests.servers import Database, PostgresServer, Row
from tests.unit import conflict_model as model
from tests.unit.conflict_model import Shape, Write

SHAPES = {
    "plain": model.PLAIN,
    "unique": model.UNIQUE,
    "uniques": model.TWO_UNIQUES,
    "toasted": model.TOASTED,
    "sums": model.SUMS,
    "deleted": model.SUMS_DELETED,
}
EACH = 6  # histories of each shape
TYPES = {"k": "text PRIMARY KEY", "u": "text UNIQUE", "w": "text UNIQUE", "n": "integer NOT NULL", "m": "integer NOT NULL"}


@dataclass
class Replay:
    """One history and its table; `added` and `greatest` are what its statements did to the merged columns of each key."""

    seed: int
    name: str
    shape: Shape
    done: list[str] = field(default_factory=list)
    added: Counter[str] = field(default_factory=Counter)
    greatest: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> str:
        return f"{self.name}_{self.seed}"

    @property
    def ddl(self) -> str:
        columns = ", ".join(f"{c} {TYPES.get(c, 'text')}" for c in self.shape.columns)
        return f"CREATE TABLE {self.table} ({columns}); ALTER TABLE {self.table} REPLICA IDENTITY FULL"

    @property
    def query(self) -> str:
        return f"SELECT * FROM {self.table} ORDER BY k"

    def halves(self) -> tuple[model.History, model.History]:
        history = model.history(self.seed, self.shape)
        return history[: len(history) // 2 + 1], history[len(history) // 2 + 1 :]

    def write(self, node: str, connection: psycopg.Connection[Row], writes: model.Transaction) -> None:
        """One transaction of an application."""
        with connection.transaction():
            told = [f"{write}{'' if self._write(connection, write) else ' (nothing)'}" for write in writes]
        ((moment,),) = connection.execute("SELECT clock_timestamp()::text").fetchall()
        self.done.append(f"{moment} {node} writes {'; '.join(told)}")

    def _write(self, connection: psycopg.Connection[Row], write: Write) -> bool:
        try:
            with connection.transaction():
                found = connection.execute(*self._statement(write)).rowcount == 1
        except psycopg.errors.UniqueViolation:
            return False
        if found and write.kind is not Kind.DELETE:
            self.added[write.key] += write.add
            self.greatest[write.key] = max(self.greatest[write.key], write.raise_to)
        return found

    def _statement(self, write: Write) -> tuple[sql.Composed, dict[str, Any]]:
        values: dict[str, Any] = {c: _wide(value) if c == "t" else value for c, value in write.values}
        table = sql.Identifier(self.table)
        if write.kind is Kind.DELETE:
            return sql.SQL("DELETE FROM {} WHERE k = %(key)s").format(table), {"key": write.key}
        if write.kind is Kind.INSERT:
            values |= {"k": write.key} | ({"n": write.add, "m": write.raise_to} if "n" in self.shape.columns else {})
            columns = sql.SQL(", ").join(map(sql.Identifier, values))
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING")
            return insert.format(table, columns, sql.SQL(", ").join(map(sql.Placeholder, values))), values
        sets: list[sql.Composable] = [sql.SQL("{} = {}").format(sql.Identifier(c), sql.Placeholder(c)) for c in values]
        if "n" in self.shape.columns:
            sets.append(sql.SQL("n = n + %(add)s, m = greatest(m, %(raise_to)s)"))
        update = sql.SQL("UPDATE {} SET {} WHERE k = %(key)s").format(table, sql.SQL(", ").join(sets))
        return update, values | {"key": write.key, "add": write.add, "raise_to": write.raise_to}


def _wide(value: str | None) -> str | None:
    """A value that is stored out of line."""
    return None if value is None else value + "".join(random.Random(value).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=3000))


@pytest.fixture
def replays() -> list[Replay]:
    seed = int(os.environ.get("STREAMER_SEED", random.SystemRandom().randrange(1 << 20)))
    print(f"STREAMER_SEED={seed}")
    return [Replay(seed + i, name, shape) for name, shape in SHAPES.items() for i in range(EACH)]


@pytest.fixture
def mesh(tmp_path: Path, databases: Databases, pg15: PostgresServer, pg18: PostgresServer, replays: list[Replay]) -> Iterator[Mesh]:
    nodes = {name: databases.create(server, f"replay_{name}") for name, server in zip("abc", (pg15, pg18, pg18), strict=True)}
    merged = {f"public.{r.table}": {"delta": ["n"], "max": ["m"]} for r in replays if "n" in r.shape.columns}
    sync = {"sources": list("abc"), "copy": "never", "table": merged}
    with Mesh(tmp_path, nodes, {"mesh": sync}, captures={"a": "wal2json"}) as mesh:
        mesh.on_all("; ".join([MARKS, *(replay.ddl for replay in replays)]))
        yield mesh.setup()


def write_all(replays: list[Replay], half: int, nodes: Mapping[str, Database]) -> None:
    """Write one half of all histories, transaction by transaction."""
    connections = {name: node.connect() for name, node in nodes.items()}
    for steps in zip_longest(*([(replay, step) for step in replay.halves()[half]] for replay in replays)):
        for replay, (node, writes) in filter(None, steps):
            replay.write(node, connections[node], writes)
    for connection in connections.values():
        connection.close()


def test_histories_of_the_model_end_equal_on_real_servers(mesh: Mesh, replays: list[Replay]) -> None:
    write_all(replays, 0, mesh.databases)
    mesh.start()
    write_all(replays, 1, mesh.databases)
    mesh.wait_until_quiet([])
    failures = [told for replay in replays if (told := differences(mesh, replay))]
    assert not failures, "\n\n".join(failures)
    assert mesh.stop() == 0


def differences(mesh: Mesh, replay: Replay) -> str:
    """What is wrong with a table, and its history; empty if nothing is."""
    held = {name: node.query(replay.query) for name, node in mesh.databases.items()}
    wrong = [] if held["a"] == held["b"] == held["c"] else ["differs"]
    if replay.name == "sums":
        merged = {str(row[0]): row[2:] for row in held["a"]}
        expected = {key: (replay.added[key], replay.greatest[key]) for key in merged}
        wrong += [] if merged == expected else [f"adds up to {merged}, and should to {expected}"]
    if not wrong:
        return ""
    rows = [f"on {name}: {[tuple(str(value)[:8] for value in row) for row in rows]}" for name, rows in held.items()]
    return "\n".join(
        [f"{replay.name}, seed {replay.seed}: {', '.join(wrong)}", *replay.done, *rows, *mesh.history_of(replay.table)]
    )
