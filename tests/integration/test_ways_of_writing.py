"""The ways in which a transaction is written where several nodes write: they differ in speed, and in nothing else.

Two nodes that know nothing of each other make random transactions on few keys, and the application of the target writes too. What
arrives is written by the batch, set by set, and one by one with care, into one database each; all must hold the same afterwards:
rows with their versions, deleted keys with theirs, and the conflicts.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from streamer.model import Change, Group, Relation
from streamer.ports import Sink
from streamer.sinks import postgres_effects, postgres_fast, postgres_judge, postgres_transactions
from tests.changes import delete, insert, table, update
from tests.conftest import Databases
from tests.integration.masters import Node, at
from tests.servers import PostgresServer

TRANSACTIONS: Final = 60
KEYS: Final = 6
NAMES: Final = set("stuvwxyz")
HISTORIES: Final = 3


class _Writer:
    """A node that makes transactions on rows of its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rows: dict[str, tuple[str, str, str]] = {}

    def transaction(self, t: Relation) -> list[Change]:
        return [self._change(t) for _ in range(self._rng.randint(1, 5))]

    def _change(self, t: Relation) -> Change:
        key, new = str(self._rng.randrange(KEYS)), str(self._rng.randrange(KEYS))
        taken = {name for other, name, _ in self._rows.values() if other != key}
        row = (key, self._rng.choice(sorted(NAMES - taken)), str(self._rng.randrange(100)))
        old = self._rows.get(key)
        if old is None:
            self._rows[key] = row
            return insert(t, *row)
        what = self._rng.random()
        if what < 0.4:
            return delete(t, *self._rows.pop(key))
        if what < 0.6 and new not in self._rows:
            self._rows[new] = moved = (new, *self._rows.pop(key)[1:])
            return update(t, *moved, old=old)
        self._rows[key] = row
        return update(t, *row, old=old)


@dataclass(frozen=True)
class _Step:
    """What comes to the target next: a statement of its application, or a transaction of a node, made at a time of the past hour or
    (None) just now."""

    statement: str = ""
    node: str = ""
    changes: tuple[Change, ...] = ()
    time: datetime | None = None


def _history(rng: random.Random, t: Relation) -> Iterator[_Step]:
    """The transactions of a and of c, each in its own order, and what the application does between."""
    writers = {node: _Writer(rng) for node in "ac"}
    clocks = dict.fromkeys(writers, 0.0)
    for i in range(TRANSACTIONS):
        if rng.random() < 0.1:
            yield _Step(f"DELETE FROM t WHERE id = {rng.randrange(KEYS)}")
            yield _Step(f"UPDATE t SET n = -1 WHERE id = {rng.randrange(KEYS)}")
        node = rng.choice("ac")
        clocks[node] += rng.uniform(0.1, 10)
        recent = node == "a" and i > TRANSACTIONS * 0.7
        yield _Step(node=node, changes=tuple(writers[node].transaction(t)), time=None if recent else at(clocks[node]))


def _play(node: Node, t: Relation, history: Sequence[_Step]) -> None:
    groups: list[Group] = []
    with node.edge() as sink:
        for step in history:
            if step.statement:
                _write(sink, groups)
                node.database.execute(step.statement)
            else:
                groups.append(node.transaction(*step.changes, time=step.time or datetime.now(UTC), node=step.node))
        _write(sink, groups)


def _write(sink: Sink, groups: list[Group]) -> None:
    while groups:
        del groups[: len(sink.write(groups, lambda: False))]


def _held(node: Node, *, origins: bool) -> dict[str, list[tuple[Any, ...]]]:
    """What the database holds; what was made just now, or has no replication origin, has no time that could be compared."""
    version = f"CASE WHEN {origins} AND v.timestamp < '{at(1800)}' THEN v.timestamp END, o.roname"
    made = "pg_xact_commit_timestamp_origin({}.xmin) AS v LEFT JOIN pg_catalog.pg_replication_origin AS o ON o.roident = v.roident"
    return {
        "rows": node.database.query(f"SELECT t.*, {version} FROM t, {made.format('t')} ORDER BY id, name"),
        "deleted": node.database.query(f"SELECT d.key, {version} FROM streamer.tombstone AS d, {made.format('d')} ORDER BY d.key"),
        "conflicts": node.conflicts(),
    }


def _by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is."""


def _set_by_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (postgres_fast, postgres_judge, postgres_effects):
        monkeypatch.setattr(module, "FEW", 0)


def _with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_transactions, "SINCE", 1_000_000)


@pytest.mark.parametrize("origins", [True, False], ids=["origins", "noted"])
@pytest.mark.parametrize(
    ("key", "more"), [(["id"], []), (["id", "name"], []), (["id"], ["UNIQUE (name)"])], ids=["one column", "two columns", "unique"]
)
def test_all_ways_of_writing_transactions_come_to_the_same(
    databases: Databases, pg15: PostgresServer, monkeypatch: pytest.MonkeyPatch, key: list[str], more: list[str], origins: bool
) -> None:
    seed = int(os.environ.get("STREAMER_SEED", random.SystemRandom().randrange(1 << 20)))
    print(f"STREAMER_SEED={seed}")
    definition = table(key=key, id="integer", name="text", n="integer")
    for number in range(HISTORIES):
        held = {}
        for way in (_by_the_batch, _set_by_set, _with_care):
            with monkeypatch.context() as patched:
                way(patched)
                node = Node(databases.create(pg15, f"target{way.__name__}_{number}"))
                t = node.create(definition, *more)
                if not origins:
                    node.become_plain()
                _play(node, t, list(_history(random.Random(seed + number), t)))
                held[way] = _held(node, origins=origins)
        assert held[_by_the_batch] == held[_with_care], f"history {number}"
        if not more:  # of a unique value that a row has for a moment only, a net effect knows nothing: that hurts nobody
            assert held[_set_by_set] == held[_with_care], f"history {number}"
