"""Collisions on unique indexes that are partial or on expressions: only the server can tell who holds their values.

They are found when the server refuses a row. The holder is looked up with the index's own definition, and the loser's key is
removed like that of any other unique key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import psycopg

from streamer.model import UNCHANGED, Change, Kind, Origin, Row, TableName
from streamer.session import Connection, version
from streamer.sinks.conflict import Conflict, ConflictKind, Handler, Key, Removal, Resolution, Stored, Version
from streamer.sinks.policy import decide
from streamer.sinks.postgres_table import EQUALS, index_columns
from streamer.sinks.postgres_world import MasterTable, World, equality, keys_of
from streamer.sinks.touched import filled

_DEFINITION: Final = """
SELECT ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, k, true) FROM pg_catalog.generate_series(1, i.{count}) AS k),
       ARRAY(SELECT (SELECT {equals}) FROM pg_catalog.generate_series(0, i.{count} - 1) AS k),
       coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid, true), 'true'), {nulls_alike}
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
WHERE n.nspname = %s AND x.relname = %s AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
"""
_INDEX: Final = re.compile(r'.*"(.+)"', re.DOTALL)


class _Collision(NamedTuple):
    """A row that would come to be at a key (where one is `stored` already), and the holder of its unique value."""

    kind: Kind
    key: Key
    row: Row | None
    holder: Key
    current: Stored
    stored: bool


class Collisions:
    """Decides what the server refused because of such an index."""

    def __init__(self, connection: Connection, world: World, handler: Callable[[str], Handler]) -> None:
        self._connection = connection
        self._world = world
        self._handler = handler

    def is_of(self, refusal: psycopg.errors.UniqueViolation, table: TableName) -> bool:
        """Whether the refusal tells of an index of this table; servers before 9.3 tell no more than its name."""
        told = refusal.diag
        if told.table_name is not None:
            return (told.schema_name, told.table_name) == (table.schema, table.name)
        return self._connection.execute(_IS_OF, [table.schema, _index(refusal), table.name]).fetchone() is not None

    def settle(
        self, refusal: psycopg.errors.UniqueViolation, table: MasterTable, changes: Sequence[Change], origin: Origin, gone: set[Key]
    ) -> Resolution | None:
        """Return who is to be removed, or parked, so that these changes of the table can be written; None if that is no such index.

        `gone` are keys whose rows are out of the way already. Locks what it looks at, until the transaction ends.

        The server tells of one collision only, and a large transaction may have thousands: all are settled at once, but those that
        the transaction itself may undo before it comes to them, and those that rest on what its origin knew. Of these the first is,
        if there are no others.
        """
        equals = EQUALS.format(opclass="o.oid = i.indclass[k]")
        query = _DEFINITION.format(equals=equals, **index_columns(version(self._connection)))
        names = [table.writer.relation.table.schema, _index(refusal)]
        definition = self._connection.execute(query.encode(), names).fetchone()
        if definition is None:
            return None
        found = list(self._find(table, changes, origin, gone, definition))
        if not found:
            return None
        touched = Counter(key for change in changes for key in keys_of(table, change))
        plain = [f for f in found if touched[f.key] == 1 and f.holder not in touched and not _knew(origin, f.current)]
        settled, away = Resolution(), set[Key]()
        for one in plain or found[:1]:
            if one.holder not in away:
                self._decide(table, one, origin, settled)
                away |= {removal.key for removal in settled.removals[-1:]}
        return settled

    def _find(
        self, table: MasterTable, changes: Sequence[Change], origin: Origin, gone: set[Key], definition: Sequence[Any]
    ) -> Iterator[_Collision]:
        """The collisions of the changes with what is stored."""
        part = self._world.load(table, changes, origin)
        for change in changes:
            key, row = _incoming(table, change, part.rows)
            for holder in () if row is None else self._holders(table, row, *definition):
                if holder != key and holder not in gone:
                    stored = part.rows[key].row is not None
                    yield _Collision(change[0], key, row, holder, self._world.stored(table, holder), stored)

    def _holders(
        self, table: MasterTable, row: Row, expressions: Sequence[str], operators: Sequence[str], condition: str, nulls_alike: bool
    ) -> list[Key]:
        """The keys of rows whose values in the index are those that the row would have."""
        writer = table.writer
        columns = range(len(writer.relation.names))
        values = ", ".join(f"%s::{writer.base_type(i)} AS {writer.column(i)}" for i in columns)
        told = [one.replace("%", "%%") for one in expressions]
        where = condition.replace("%", "%%")
        wanted = ", ".join(f'({one}) AS "streamer {n}"' for n, one in enumerate(told))
        pairs = [(f"({one})", equals, f'w."streamer {n}"') for n, (one, equals) in enumerate(zip(told, operators, strict=True))]
        same = " AND ".join(equality(*pair, nulls=nulls_alike) for pair in pairs)
        query = (
            f"SELECT {', '.join(f't.{writer.column(i)}' for i in table.key)} FROM {writer.place} AS t, "
            f"(SELECT {wanted} FROM (SELECT {values}) AS t WHERE {where}) AS w WHERE ({where}) AND {same}"
        )
        return self._world.keys(query, list(row))

    def _decide(self, table: MasterTable, one: _Collision, origin: Origin, settled: Resolution) -> None:
        relation, current = table.writer.relation, one.current
        kind = ConflictKind.INSERT_EXISTS if one.kind is Kind.INSERT else ConflictKind.UPDATE_EXISTS
        incoming = Version(origin.commit_time, origin.node)
        told = (current.row, one.row, current.version, incoming)
        conflict = Conflict(kind, relation, one.key, one.kind, *told, None, table.rules.name)
        if _knew(origin, current):
            if relation.net:
                settled.parked.append((relation, one.holder))
                return
            conflict = replace(conflict, winner="incoming")
        else:
            _, conflict = decide(table.rules, conflict, self._handler, None)
        loses = conflict.winner == "current"
        settled.conflicts.append(conflict)
        settled.removals.append(Removal(relation, one.key if loses else one.holder, one.stored if loses else True))


def _knew(origin: Origin, holder: Stored) -> bool:
    return holder.version is None or origin.knew(holder.version)


def _index(refusal: psycopg.errors.UniqueViolation) -> str:
    """The name of the index, which old servers only have in their message."""
    found = _INDEX.match(refusal.diag.message_primary or "")
    return refusal.diag.constraint_name or (found[1] if found else "")


_IS_OF: Final = """
SELECT 1 FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
WHERE n.nspname = %s AND x.relname = %s AND c.relname = %s
"""


def _incoming(table: MasterTable, change: Change, rows: dict[Key, Stored]) -> tuple[Key, Row | None]:
    """The key and the row that a change would leave, as far as both are known."""
    new = change[3]
    if new is None:
        return (), None
    key = table.key_of(new)
    before = rows.get(key)
    row = filled(new, before.row if before else None)
    return key, None if UNCHANGED in row else row
