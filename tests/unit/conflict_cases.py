"""A transaction that meets stored rows, written down as short as a test of the Resolver wants to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta

from streamer.model import LSN, Change, Column, Identity, Kind, Origin, Relation, Row, TableName
from streamer.sinks.conflict import Answer, Conflict, Dispute, Key, Resolution, Resolver, Rules, Stored, Table, Version
from streamer.sinks.touched import Unique, Values

NUMERIC, TEXT = 1700, 25
INSERT, UPDATE, DELETE = Kind.INSERT, Kind.UPDATE, Kind.DELETE
LATEST = Rules("latest")
BEFORE, AFTER = 5, 15
"""Seconds at which the stored row was written, before and after the incoming change."""

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return NOON + timedelta(seconds=seconds)


def relation(columns: str = "kv", identity: Identity = Identity.FULL) -> Relation:
    """The key is `k`, `n` and `m` are numbers."""
    described = (Column(c, NUMERIC if c in "nm" else TEXT, identity is Identity.FULL or c == "k") for c in columns)
    return Relation(TableName("public", "t"), tuple(described), identity)


T = relation()


def stored(*row: str | None, by: str = "a", when: int | None = 1) -> Stored:
    return Stored(row, Version(None if when is None else at(when), by))


def tombstone(by: str = "a", when: int = 1) -> Stored:
    return Stored(None, Version(at(when), by))


def resolve(
    *changes: Change,
    rows: Mapping[str, Stored] | None = None,
    rules: Rules = LATEST,
    when: int = 10,
    seen: Mapping[str, int] | None = None,
    uniques: tuple[tuple[int, ...], ...] = (),
    removed: Sequence[str] = (),
    patient: bool = False,
    answer: Answer | Exception = "current",
    nulls_alike: Set[Unique] = frozenset(),
    alike: Mapping[Unique, Mapping[Values, Values]] | None = None,
) -> Resolution:
    """What node `a` makes of a transaction of `b`, made at second 10 and, unless `seen`, without knowing of `a`."""
    relations = {change[1] for change in changes}
    known: dict[Key, Stored] = {(key,): there for key, there in (rows or {}).items()}
    tables = {r: Table(r, (r.names.index("k"),), uniques, rules, dict(known), nulls_alike, alike or {}) for r in relations}
    origin = Origin("b", LSN(1), at(when), {node: at(second) for node, second in (seen or {}).items()})

    def handler(dispute: Dispute) -> Answer:
        if isinstance(answer, Exception):
            raise answer
        return answer

    gone = {(r, (key,)) for r in relations for key in removed}
    return Resolver("a", lambda policy: handler).resolve(changes, origin, tables, gone, patient)


def insert(*row: str | None, into: Relation = T) -> Change:
    return (INSERT, into, None, row)


def update(old: Row | None, new: Row, of: Relation = T) -> Change:
    return (UPDATE, of, old, new)


def delete(*row: str, of: Relation = T) -> Change:
    return (DELETE, of, row, None)


def only(resolution: Resolution) -> Conflict:
    (conflict,) = resolution.conflicts
    return conflict


def changes(resolution: Resolution) -> list[tuple[Kind, Row | None, Row | None]]:
    return [(kind, old, new) for kind, _, old, new in (effect.change for effect in resolution.effects)]
