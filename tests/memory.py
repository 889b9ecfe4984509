"""A target in memory, for tests of what stands before the sinks: the contract of ports.Sink, and faults on demand.

A `MemoryDatabase` outlives its sinks, as a file or a server does; `fail_next`, `gate` and `flushed` make it fail, block
and lag. Changes are applied one by one in source order, so that it also serves as the oracle of what a group must do.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from streamer.copytext import parse
from streamer.errors import ApplyError, ConnectError, SchemaError
from streamer.model import (
    LSN,
    UNCHANGED,
    Change,
    CopiedRange,
    EdgeName,
    Group,
    Identity,
    Kind,
    Relation,
    Row,
    Sharing,
    SlotIdentity,
    TableName,
)
from streamer.ports import CopyTable, Progress, Start, Written
from streamer.post_data import Builder
from streamer.sinks.in_order import write_in_order
from tests.memory_source import is_within

Record = dict[str, str | None]


@dataclass
class MemoryTable:
    """A table: columns, a primary key and other unique keys, rows. Generated columns are computed from the row."""

    columns: tuple[str, ...]
    key: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    generated: dict[str, Callable[[Record], str | None]] = field(default_factory=dict)
    rows: list[Record] = field(default_factory=list)


class MemoryDatabase:
    """What is durable, the faults to come, and the groups that were written."""

    def __init__(self) -> None:
        self.tables: dict[TableName, MemoryTable] = {}
        self.progress: dict[EdgeName, Progress] = {}
        self.writers: set[EdgeName] = set()
        self.locks: dict[str, EdgeName] = {}
        self.groups: list[Group] = []
        #: write() waits until it is set
        self.gate = threading.Event()
        self.gate.set()
        #: called before groups are written, with their number and what tells of an interruption
        self.on_write: Callable[[int, Callable[[], bool]], None] = lambda groups, interrupted: None
        #: durable() does not go past it; None: whatever is committed is flushed
        self.flushed: LSN | None = None
        #: what sinks tell of a quarantine, and whether they have one
        self.quarantined = 0
        self.holds_back = False
        self._faults: dict[str, list[Exception | None]] = {}

    def fail_next(self, method: str, error: Exception) -> None:
        """Let the next call of `open`, `load`, `write` or `commit` raise `error`; several wait in line."""
        self._faults.setdefault(method, []).append(error)

    def fail_later(self, method: str, error: Exception, calls: int) -> None:
        """Let the call of it fail that follows so many."""
        self._faults.setdefault(method, []).extend([None] * calls + [error])

    def forget_faults(self) -> None:
        """Let nothing fail any more."""
        self._faults.clear()

    def meet_fault(self, method: str) -> None:
        """Raise the error that waits for `method`, if any."""
        if (waiting := self._faults.get(method)) and (error := waiting.pop(0)) is not None:
            raise error


class MemorySink:
    """Implements ports.Sink over a MemoryDatabase."""

    parallel_loads = False
    post_data: Builder | None = None

    def __init__(self, edge: EdgeName, database: MemoryDatabase) -> None:
        self._edge = edge
        self._database = database
        self._open_tables: dict[TableName, MemoryTable] | None = None
        self._is_open = False

    def open(self) -> Progress | None:
        self._database.meet_fault("open")
        if self._edge in self._database.writers:
            raise ConnectError(f"edge {self._edge} is written by another sink")
        self._database.writers.add(self._edge)
        self._is_open = True
        progress = self._database.progress.get(self._edge)
        return None if progress is None else _copied(progress)

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        self._database.progress[self._edge] = Progress(slot, position, {})

    def follow(self, slot: SlotIdentity) -> None:
        self._database.progress[self._edge] = replace(self._database.progress[self._edge], slot=slot)

    def has(self, table: TableName) -> bool:
        return table in self._database.tables

    def is_empty(self, table: TableName) -> bool:
        return not _table(self._database.tables, table).rows

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        self._database.meet_fault("load")
        target = copy.deepcopy(_table(self._database.tables, table.table))
        within = start.within
        if start.replace:
            target.rows[:] = [r for r in target.rows if within and not is_within(within, r[within.column] or "")]
        rows = [dict(zip(table.columns, row, strict=True)) for block in blocks for row in parse(block)]
        for row in rows:
            _put(target, table.table, row)
        self._database.tables[table.table] = target
        if within is not None:
            self._database.progress[self._edge].ranges[table.table] = (
                *self._database.progress[self._edge].ranges.get(table.table, ()),
                CopiedRange(within, start.position, len(rows)),
            )
            return len(rows)
        self.keep(table.table, start.position)
        for source, position in start.others.items():
            other = EdgeName(self._edge.sync, source, self._edge.target)
            self._database.progress[other].copied[table.table] = position
        return len(rows)

    @property
    def ranges(self) -> MemoryRanges:
        return MemoryRanges(self._edge, self._database)

    def progress_by_source(self) -> Mapping[str, Progress]:
        ours = (self._edge.sync, self._edge.target)
        progress = self._database.progress
        return {e.source: _copied(p) for e, p in progress.items() if (e.sync, e.target) == ours}

    def try_lock(self, name: str) -> bool:
        return self._database.locks.setdefault(name, self._edge) == self._edge

    def unlock(self, name: str) -> None:
        if self._database.locks.get(name) == self._edge:
            del self._database.locks[name]

    def keep(self, table: TableName, position: LSN) -> None:
        self._database.progress[self._edge].copied[table] = position

    def leave(self, table: TableName) -> None:
        del self._database.progress[self._edge].copied[table]

    sharing = Sharing.ONE_ORIGIN

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        self._database.on_write(len(groups), interrupted)
        return write_in_order(groups, interrupted, self._write)

    def _write(self, group: Group) -> Written:
        self._database.gate.wait()
        self._database.meet_fault("write")
        if self._open_tables is None:
            self._open_tables = copy.deepcopy(self._database.tables)
        done: dict[str, Any] = Counter(_apply(self._open_tables, change) for change in group.changes)
        if group.complete:
            self._commit(group)
        self._database.groups.append(group)
        return Written(done["inserted"], done["updated"], done["deleted"], done["truncated"], done["missing"])

    def _commit(self, group: Group) -> None:
        self._database.meet_fault("commit")
        assert self._open_tables is not None
        self._database.tables, self._open_tables = self._open_tables, None
        before = self._database.progress[self._edge]
        self._database.progress[self._edge] = Progress(before.slot, group.position, before.copied, group.seen, before.ranges)

    def durable(self) -> LSN:
        committed = self._database.progress[self._edge].position
        return committed if self._database.flushed is None else min(committed, self._database.flushed)

    def quarantined(self) -> int:
        return self._database.quarantined

    def cancel(self) -> None:
        self._database.gate.set()

    def close(self) -> None:
        self._open_tables = None
        if self._is_open:
            self._database.writers.discard(self._edge)
            for name in list(self._database.locks):
                self.unlock(name)
            self._is_open = False


class MemoryRanges:
    """Implements ports.RangeLoader."""

    def __init__(self, edge: EdgeName, database: MemoryDatabase) -> None:
        self._database = database
        self._progress = database.progress[edge]
        self._tables = database.tables

    def takes(self, table: CopyTable) -> bool:
        return bool(_table(self._tables, table.table).key)

    def resumes(self, table: CopyTable) -> bool:
        return not (self._database.holds_back and _table(self._tables, table.table).unique)

    def begin(self, table: CopyTable, start: Start) -> bool:
        rows = _table(self._tables, table.table).rows
        if rows and not start.replace:
            return False
        rows.clear()
        self.forget(table.table)
        self._progress.copied[table.table] = LSN(0)
        return True

    def finish(self, table: CopyTable, position: LSN, rows: int) -> None:
        self._progress.copied[table.table] = position

    def forget(self, table: TableName) -> None:
        self._progress.ranges.pop(table, None)

    def rest(self) -> None:
        pass


def _table(tables: dict[TableName, MemoryTable], name: TableName) -> MemoryTable:
    if name not in tables:
        raise SchemaError(f'there is no table "{name}" on the target', "run: streamer setup")
    return tables[name]


def _copied(progress: Progress) -> Progress:
    return replace(progress, copied=dict(progress.copied), ranges=dict(progress.ranges))


def _apply(tables: dict[TableName, MemoryTable], change: Change) -> str:
    """Apply one change; return the field of Written that it counts for."""
    kind, relation, old, new = change
    table = _table(tables, relation.table)
    for name in relation.names:
        if name not in table.columns:
            raise SchemaError(f'table "{relation.table}" has no column "{name}" on the target')
    if kind is Kind.TRUNCATE:
        table.rows.clear()
        return "truncated"
    if kind is Kind.INSERT:
        assert new is not None
        _put(table, relation.table, _record(relation, new))
        return "inserted"
    found = _find(table, relation, old or new or ())
    if found is None:
        return "missing"
    table.rows.remove(found)
    if kind is Kind.UPDATE and new is not None:
        _put(table, relation.table, found | _record(relation, new))
    return "updated" if kind is Kind.UPDATE else "deleted"


def _record(relation: Relation, row: Row) -> Record:
    return {name: v for name, v in zip(relation.names, row, strict=True) if v is not UNCHANGED}


def _find(table: MemoryTable, relation: Relation, row: Row) -> Record | None:
    wanted = {n: v for n, v in _record(relation, row).items() if n not in table.generated}
    by_key = {c.name for c in relation.columns if c.identity} if relation.identity is not Identity.FULL else set(table.key)
    if by_key:
        wanted = {n: v for n, v in wanted.items() if n in by_key}
    return next((r for r in table.rows if all(r[n] == v for n, v in wanted.items())), None)


def _put(table: MemoryTable, name: TableName, row: Record) -> None:
    """Add a row, unless it breaks a key."""
    whole = dict.fromkeys(table.columns) | row
    whole |= {column: compute(whole) for column, compute in table.generated.items()}
    for key in (table.key, *table.unique) if table.key else table.unique:
        values = [whole[c] for c in key]
        if None not in values and any([r[c] for c in key] == values for r in table.rows):
            shown = ", ".join(f"{c} = {whole[c]!r}" for c in table.key or key)
            raise ApplyError(f'table "{name}" refused the row with {shown}: {", ".join(key)} is not unique')
    table.rows.append(whole)
