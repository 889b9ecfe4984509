"""A pair of tables of which both are PostgreSQL's: each server hashes its own rows, unless a function of the user's makes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from streamer.capture.catalog import SourceTable, read_as, read_tables
from streamer.capture.definition_types import quote
from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, EdgeName, TableName
from streamer.session import Connection
from streamer.sinks.postgres_types import FIRST_USER_OID
from streamer.verify.comparison import Pair
from streamer.verify.plan import Plan
from streamer.verify.postgres_rows import HashedRows, Hashing, Reading, read_alike, value_of
from streamer.verify.streamed_pairs import INTEGERS, streamed_pair, target_make
from streamer.verify.streamed_rows import PostgresScan, StreamedRows

_MOMENTS: Final = (1082, 1114, 1184)  # date, timestamp, timestamptz
_TEXTS: Final = (25, 1043)  # text, varchar


class PostgresTarget:
    """The target of an edge, with those of its tables that have these names."""

    def __init__(self, edge: EdgeName, source: Connection, target: Connection, tables: Collection[TableName]) -> None:
        self._edge = edge
        self._source = source
        self._target = target
        self._tables = {t.table: t for t in read_tables(target, tables.__contains__)}
        read_alike(source, target)
        self._hashing = Hashing.between(source, target)

    def compared(self, plan: Plan) -> Pair:
        """Return how a table is compared."""
        there = self._tables.get(plan.target)
        if there is None:
            raise SchemaError(f'node "{self._edge.target}" has no table "{plan.target}"', "run: streamer setup")
        columns = {c.name: c for c in there.definition.columns}
        for name in plan.names:
            if name not in columns:
                raise SchemaError(
                    f'table "{plan.target}" on "{self._edge.target}" has no column "{name}"',
                    "run: streamer check, and add it there",
                )
        if plan.cut is not None:
            return self._streamed(plan, columns, partitioned=there.partitioned)
        ranged = self._ranged(plan, there)
        here = [self._here(c, columns[plan.called(c.name)]) for c in plan.columns]
        theirs = [value_of(self._target, columns[name], self._source) for name in plan.names]
        first, kind = (quote(ranged.name), ranged.type_name) if ranged is not None else ("", "")
        keys = [tuple(side[i] for i in plan.places) for side in (here, theirs)]
        reading = Reading(plan.table.table, tuple(here), keys[0], first, kind, plan.where, plan.table.partitioned)
        called = quote(plan.called(ranged.name)) if ranged is not None else ""
        other = Reading(plan.target, tuple(theirs), keys[1], called, kind, partitioned=there.partitioned)
        same = not plan.where and plan.target == plan.table.table and set(plan.table.leaves) == set(there.leaves)
        partition = bool(plan.table.leaves) and same
        shown = [read_as(self._source, c) for c in plan.columns]
        source = HashedRows(self._edge.source, self._source, reading, self._hashing, partition=partition, shown=shown)
        target = HashedRows(self._edge.target, self._target, other, self._hashing, partition=partition)
        return Pair(source, target, plan.whole, ranged is not None)

    def _here(self, column: ColumnDefinition, other: ColumnDefinition) -> str:
        """The source's value as the target's column holds it."""
        if other.type_name == column.type_name or not _changes(other):
            return value_of(self._source, column, self._target)
        if not self._source.execute("SELECT 1 FROM pg_type WHERE oid = %s", [other.type_oid]).fetchone():
            raise SchemaError(
                f'column "{column.name}" is {column.type_name} on "{self._edge.source}" and {other.type_name} on '
                f'"{self._edge.target}", a type that the source does not know: they cannot be compared',
                "name the other tables with --table",
            )
        return value_of(self._source, column, self._target, other)

    def _ranged(self, plan: Plan, there: SourceTable) -> ColumnDefinition | None:
        first = plan.first
        if first is None or there.partitioned:
            return None
        key = tuple(map(plan.called, plan.key))
        kinds = {c.name: c.type_oid for c in there.definition.columns}
        other = kinds[key[0]]
        alike = (first.type_oid in INTEGERS and other in INTEGERS) or (first.type_oid in _MOMENTS and first.type_oid == other)
        return first if alike and any(unique[0] == key[0] for unique in _indexes(there)) else None

    def _streamed(self, plan: Plan, columns: dict[str, ColumnDefinition], *, partitioned: bool) -> Pair:
        values = tuple(read_as(self._target, columns[name]) for name in plan.names)
        theirs = Reading(plan.target, values, (), partitioned=partitioned)
        as_it_is = [str] * len(plan.columns)
        target = StreamedRows(PostgresScan(self._edge.target, self._target, theirs), target_make(plan, as_it_is))
        return streamed_pair(self._edge, self._source, plan, as_it_is, target, None)


def _changes(column: ColumnDefinition) -> bool:
    """Whether values may become others in the column: text stays what it is, and of a type of the user's nobody knows."""
    return column.type_oid < FIRST_USER_OID and column.type_oid not in _TEXTS


def _indexes(table: SourceTable) -> list[tuple[str, ...]]:
    return [key for key in (table.definition.primary_key, *table.definition.unique_keys) if key]
