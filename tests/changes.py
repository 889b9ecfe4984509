"""Tables, changes and groups, written down as short as a test wants to read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from streamer.model import (
    LSN,
    UNCHANGED,
    Change,
    Column,
    ColumnDefinition,
    Group,
    Identity,
    Kind,
    Origin,
    Relation,
    Row,
    TableDefinition,
    TableName,
)
from streamer.ports import CopyTable, Sink, Written

OIDS = {"integer": 23, "bigint": 20, "text": 25, "boolean": 16, "bytea": 17, "double precision": 701, "numeric": 1700}


def table(called: str = "t", /, *, key: Sequence[str] = ("id",), schema: str = "public", **columns: str) -> TableDefinition:
    """A table from the types of its columns."""
    return TableDefinition(
        TableName(schema, called),
        tuple(ColumnDefinition(c, kind, OIDS[kind], c in key, None, "", False) for c, kind in columns.items()),
        tuple(key),
    )


def relation(definition: TableDefinition, identity: Identity = Identity.DEFAULT) -> Relation:
    """The relation of the table's changes."""
    whole = identity is Identity.FULL
    columns = (Column(c.name, c.type_oid, whole or c.name in definition.primary_key) for c in definition.columns)
    return Relation(definition.table, tuple(columns), identity)


def insert(r: Relation, *row: str | None) -> Change:
    return (Kind.INSERT, r, None, row)


def update(r: Relation, *row: str | None, old: Row | None = None) -> Change:
    return (Kind.UPDATE, r, old, row)


def delete(r: Relation, *row: str | None) -> Change:
    """A delete as the WAL has it: only the columns of the replica identity."""
    return (Kind.DELETE, r, tuple(v if c.identity else UNCHANGED for v, c in zip(row, r.columns, strict=True)), None)


def truncate(r: Relation) -> Change:
    return (Kind.TRUNCATE, r, None, None)


def group(*changes: Change, to: int = 200, complete: bool = True) -> Group:
    origin = Origin("a", LSN(to - 1), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return Group(origin, changes, LSN(to), complete, transactions=1)


def write(sink: Sink, group: Group) -> Written:
    """Have the sink write one group; return what it did."""
    (written,) = sink.write([group], lambda: False)
    return written


def copy_of(definition: TableDefinition) -> CopyTable:
    columns = [c for c in definition.columns if not c.generated]
    return CopyTable(
        definition.table, tuple(c.name for c in columns), tuple(c.type_oid for c in columns), rows=0, key=definition.primary_key
    )


ITEMS = table(id="integer", name="text", price="numeric")
PLAIN = table("plain", key=(), a="integer", b="text")
