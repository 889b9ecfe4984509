"""Histories of a multi-master sync: who writes what into one small table, on few keys and few values.

`history(seed, shape)` is random, and the same for the same seed, so that it can be played on the nodes of conflict_nodes.py and
on real servers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, TypeAlias

from streamer.model import Kind
from streamer.sinks.conflict import Rules

NAMES: Final = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Write:
    """One statement. It is passed over if it finds no row, or a row with its key or its unique value (ON CONFLICT DO NOTHING).

    `values` are the columns that are set; `add` is added to the delta column, and the max column raised to `raise_to`.
    """

    kind: Kind
    key: str
    values: tuple[tuple[str, str | None], ...] = ()
    add: int = 0
    raise_to: int = 0

    def __str__(self) -> str:
        told = [f"{name}={value}" for name, value in self.values]
        told += [f"n+={self.add}"] * bool(self.add) + [f"m>={self.raise_to}"] * bool(self.raise_to)
        return " ".join([self.kind, self.key, *told])


LATEST: Final = Rules("latest")

Transaction: TypeAlias = list[Write]
History: TypeAlias = list[tuple[str, Transaction]]
"""Who writes what, in this order; what is delivered in between is not part of it."""


@dataclass(frozen=True)
class Shape:
    """A table and what is done to it. The key is `k`, `u` and `w` are unique, `v` is an ordinary column, `t` one that is TOASTed,
    `n` has delta, `m` has max."""

    columns: str
    rules: Rules = LATEST
    full: bool = True
    keys: tuple[str, ...] = ("1", "2", "3")
    values: tuple[str, ...] = ("x", "y", "z")
    inserts: int = 3
    updates: int = 3
    deletes: int = 2
    moves: int = 1
    #: of ten transactions, how many truncate the table
    truncates: int = 0
    #: of ten updates, how many set an ordinary column (the others only merge columns)
    ordinary: int = 10

    @property
    def uniques(self) -> str:
        return "".join(c for c in self.columns if c in "uw")


PLAIN: Final = Shape("kv")
UNIQUE: Final = Shape("kuv")
TWO_UNIQUES: Final = Shape("kuw")
TOASTED: Final = Shape("kvt")
_MERGE: Final = Rules("latest", delta=frozenset("n"), max=frozenset("m"))
SUMS: Final = Shape("kvnm", _MERGE, deletes=0, moves=0, updates=8, ordinary=4)
SUMS_DELETED: Final = Shape("kvnm", _MERGE, moves=0, updates=6, ordinary=4)


def history(seed: int, shape: Shape, nodes: int = 3, transactions: int = 8) -> History:
    """Return a random history: up to three writes a transaction, on few keys and few values."""
    chance = random.Random(f"history {seed}")
    count = chance.randint(2, transactions)
    return [(chance.choice(NAMES[:nodes]), _transaction(chance, shape)) for _ in range(count)]


def _transaction(chance: random.Random, shape: Shape) -> Transaction:
    if shape.truncates and chance.randrange(10) < shape.truncates:
        return [Write(Kind.TRUNCATE, "")]
    return [_write(chance, shape) for _ in range(chance.choice((1, 1, 1, 2, 3)))]


def _write(chance: random.Random, shape: Shape) -> Write:
    kinds = ["insert"] * shape.inserts + ["update"] * shape.updates + ["delete"] * shape.deletes + ["move"] * shape.moves
    kind, key = chance.choice(kinds), chance.choice(shape.keys)
    others = [c for c in shape.columns if c in "uvwt"]
    if kind == "delete":
        return Write(Kind.DELETE, key)
    if kind == "move":
        return Write(Kind.UPDATE, key, (("k", chance.choice(shape.keys)),))
    merges = {"add": chance.randint(-9, 9), "raise_to": chance.randint(1, 99)} if "n" in shape.columns else {}
    if kind == "insert":
        return Write(Kind.INSERT, key, tuple((c, chance.choice(shape.values)) for c in others), **merges)
    chosen = chance.sample(others, chance.randint(1, len(others))) if chance.randrange(10) < shape.ordinary else []
    return Write(Kind.UPDATE, key, tuple((c, chance.choice(shape.values)) for c in chosen), **merges)


def small_histories(shape: Shape, nodes: int, length: int) -> Iterator[History]:
    """Every history of so many single writes on two keys, with two values; the first write is made on the first node."""
    keys, values = shape.keys[:2], shape.values[:2]
    column = next(c for c in shape.columns if c in "uv")
    each = [Write(kind, key, ((column, value),)) for kind in (Kind.INSERT, Kind.UPDATE) for key in keys for value in values]
    each += [Write(Kind.DELETE, key) for key in keys]
    each += [Write(Kind.UPDATE, key, (("k", other),)) for key in keys for other in keys if key != other]
    for writes in product(each, repeat=length):
        for names in product(NAMES[:nodes], repeat=length - 1):
            yield [(name, [write]) for name, write in zip((NAMES[0], *names), writes, strict=True)]
