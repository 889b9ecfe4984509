"""Readers of deltas that a test drives itself, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from streamer.admin.setup import setup
from streamer.capture.assemble import Interest
from streamer.capture.trigger_reader import TriggerReader
from streamer.capture.trigger_source import TriggerSource
from streamer.config import Config, slot_name
from streamer.model import LSN, UNCHANGED, Change, Idle, Kind, Piece, Row, TableName, Transaction, Value
from streamer.ports import Place
from tests.configs import make_config
from tests.servers import Database
from tests.waiting import DEADLINE


def captured(database: Database) -> tuple[Config, TriggerSource]:
    """Set up a database whose tables triggers capture, for a sync to nowhere in particular."""
    config = make_config({"a": database.url, "j": "jsonl:-"}, capture="trigger")
    setup(config, None, lambda line: None)
    return config, source_of(config)


def source_of(config: Config) -> TriggerSource:
    """The reading end of the one sync."""
    sync = config.syncs["shop"]
    interest = Interest(sync.selects, keys=sync.key_for)
    return TriggerSource("a", config.nodes["a"].url, "shop", slot_name("shop", "a"), interest)


@dataclass
class Batch:
    """A transaction that a reader gave, whole."""

    transaction: Transaction
    changes: list[Change]
    end: LSN
    pieces: int

    def told(self) -> list[tuple[str, str, tuple[Value, ...]]]:
        """What happened, by table: the kind, and the row or the key."""
        return sorted(
            (
                kind.value,
                relation.table.name,
                new or tuple(v for v, c in zip(old or (), relation.columns, strict=False) if c.identity),
            )
            for kind, relation, old, new in self.changes
        )


class Batches:
    """What an open reader gives."""

    def __init__(self, reader: TriggerReader) -> None:
        self.reader = reader
        self._items: Iterator[Piece | Idle] = iter(())

    def next(self, seconds: float = DEADLINE) -> Batch:
        """Return the next transaction; fail if there is none."""
        found = self.next_if_any(seconds)
        assert found is not None, "no batch came"
        return found

    def next_if_any(self, seconds: float) -> Batch | None:
        """Return the next transaction; None if none comes within so many seconds."""
        changes: list[Change] = []
        pieces = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for item in self._items:
                if isinstance(item, Piece):
                    changes += item.changes
                    pieces += 1
                    if item.end is not None:
                        return Batch(item.transaction, changes, item.end, pieces)
            self._items = iter(self.reader.read(0.1))
        return None

    def idle(self) -> LSN:
        """Return the next idle position."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            for item in self._items:
                assert isinstance(item, Idle), "there is a batch"
                return item.position
            self._items = iter(self.reader.read(0.1))
        raise AssertionError("no idle position came")


@contextmanager
def reading(source: TriggerSource, *places: Place) -> Iterator[Batches]:
    """Open the source for edges at these places."""
    with source.read_from(list(places)) as reader:
        yield Batches(reader)


def place(source: TriggerSource, position: LSN | None = None, starts: Mapping[str, LSN] | None = None) -> Place:
    """Where an edge goes on that wants all tables; at the confirmed position, unless told otherwise."""
    at = source.state().confirmed if position is None else position
    tables = {table.table: (at,) for table in source.tables() if table.carried}
    return Place(at, {}, tables | {TableName("public", name): (start,) for name, start in (starts or {}).items()})


Rows = dict[TableName, dict[tuple[Value, ...], dict[str, Value]]]


def apply(rows: Rows, changes: Sequence[Change], keys: Mapping[TableName, Sequence[str]]) -> None:
    """Apply changes to rows that are told apart by these keys; what does not fit fails."""
    for kind, relation, old, new in changes:
        if relation.table not in keys:
            continue
        table = rows.setdefault(relation.table, {})
        if kind is Kind.TRUNCATE:
            table.clear()
            continue
        key = keys[relation.table]
        before = None if old is None else _values(relation.names, old)
        after = None if new is None else _values(relation.names, new)
        if kind is Kind.INSERT:
            assert after is not None
            assert tuple(after[k] for k in key) not in table, f"{relation}: inserted twice: {after}"
            table[tuple(after[k] for k in key)] = after
            continue
        there = before if before is not None and all(k in before for k in key) else after
        assert there is not None
        found = table.pop(tuple(there[k] for k in key))
        if after is not None:
            table[tuple((found | after)[k] for k in key)] = found | after


def _values(names: Sequence[str], row: Row) -> dict[str, Value]:
    return {name: value for name, value in zip(names, row, strict=True) if value is not UNCHANGED}
